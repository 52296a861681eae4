// Channels last: a strip of columns, and the work on it pack by pack.

// How a strip of columns is cut into packs. A last pack that does not fit overlaps the one before it: its columns are
// computed twice, alike. Accumulators are indexed by pack, so the two do not meet.
template <class T>
struct Strip {
  static constexpr int size = Pack<T>::size;
  int64_t width;
  int64_t packs() const { return (width + size - 1) / size; }
  bool narrow() const { return width < size; }
  INLINE int64_t column(int64_t pack) const {
    const int64_t c = pack * size;
    return c + size <= width ? c : width - size;
  }
  // Is the strip narrow, fewer columns than a pack? Known to the compiler, because to ask at every load is slow.
  template <bool is_narrow>
  INLINE Pack<T> load(const T* row, int64_t pack) const {
    if constexpr (is_narrow) return Pack<T>::load_first(row, width, T(0));
    else return Pack<T>::load(row + column(pack));
  }
  template <bool is_narrow>
  INLINE Wide<T> load_wide(const T* row, int64_t pack) const {
    if constexpr (is_narrow) return widen(Pack<T>::load_first(row, width, T(0)));
    else return ::normwright::NORMWRIGHT_ISA::load_wide(row + column(pack));
  }
  // Rows whose per-channel numbers stay in registers while they are written. Where a strip is too wide for that, memory
  // prefers whole rows.
  int64_t rows_together() const { return packs() <= 4 ? 8 : 1; }
  template <bool is_narrow, bool Stream>
  INLINE void put(Pack<T> value, T* row, int64_t pack) const {
    if constexpr (is_narrow) value.store_first(row, width);
    else value.template put<Stream>(row + column(pack));
  }
  // From accumulators, indexed by pack, to an array indexed by column.
  INLINE void spread(const double* accumulated, double* out) const {
    for (int64_t p = 0; p < packs(); ++p)
      for (int k = 0; k < size && k < width; ++k) out[(narrow() ? 0 : column(p)) + k] = accumulated[p * size + k];
  }
};

constexpr int64_t kLanes = kStrip + 16;

// Calls work<packs, narrow>(first pack) over all packs of a strip.
template <class T, class Work>
INLINE void each_packs(Strip<T> strip, Work work) {
  if (strip.narrow()) return work.template operator()<1, true>(0);
  int64_t p = 0;
  if (strip.packs() <= 4)
    for (; p + 4 <= strip.packs(); p += 4) work.template operator()<4, false>(p);
  for (; p < strip.packs(); ++p) work.template operator()<1, false>(p);
}

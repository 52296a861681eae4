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
  template <bool is_narrow, class D>
  INLINE Pack<T> load(const D* row, int64_t pack) const {
    if constexpr (is_narrow) return load_first(row, width);
    else return ::normwright::NORMWRIGHT_ISA::load(row + column(pack));
  }
  template <bool is_narrow, class D>
  INLINE Wide<T> load_wide(const D* row, int64_t pack) const {
    if constexpr (is_narrow) return widen(load_first(row, width));
    else return ::normwright::NORMWRIGHT_ISA::load_wide(row + column(pack));
  }
  // Wide rows are read in pieces, eight rows of one, then eight of the next: no prefetcher of the machine foresees that.
  // With each piece a part of the next eight rows is asked for, in the order in which they lie in memory.
  template <int packs, class D>
  INLINE void foresee(const D* rows, int64_t stride, int64_t pack) const {
    constexpr int64_t line = 64 / sizeof(D);
    if (width <= 4 * size) return;
    if (stride == width) {
      for (int64_t k = 0; k < 8 * packs * size; k += line) prefetch(rows + 8 * stride + 8 * pack * size + k);
    } else {
      for (int row = 8; row < 16; ++row)
        for (int64_t k = 0; k < packs * size; k += line) prefetch(rows + row * stride + pack * size + k);
    }
  }
  template <bool is_narrow, bool Stream, class D>
  INLINE void put(Pack<T> value, D* row, int64_t pack) const {
    if constexpr (is_narrow) store_first(value, row, width);
    else ::normwright::NORMWRIGHT_ISA::put<Stream>(value, row + column(pack));
  }
  template <bool is_narrow, bool Stream, int packs, class D>
  INLINE void put_all(const Pack<T> (&values)[packs], D* row, int64_t pack) const {
    if constexpr (packs > 1) ::normwright::NORMWRIGHT_ISA::put_all<Stream>(values, row + pack * size);
    else put<is_narrow, Stream>(values[0], row, pack);
  }
  // From accumulators, indexed by pack, to an array indexed by column.
  INLINE void spread(const double* accumulated, double* out) const {
    for (int64_t p = 0; p < packs(); ++p)
      for (int k = 0; k < size && k < width; ++k) out[(narrow() ? 0 : column(p)) + k] = accumulated[p * size + k];
  }
};

constexpr int64_t kLanes = kStrip + 16;

// Rows that are written together, piece by piece of four packs, so that per-channel numbers are fetched once for all of them:
// groups of at most `count` rows, `step` apart; the first rows of groups are `pace` apart. Narrow rows lie side by side. Wide
// ones are taken from all over the tile: each is then read and written from end to end, in one of a few streams that the
// machine's prefetchers follow, where pieces of neighbouring rows would lose them.
struct Together {
  int64_t rows, groups, count, pace, step;
  template <class T>
  Together(Strip<T> strip, int64_t rows) : rows(rows) {
    const bool wide = strip.packs() > 4;
    count = wide ? 4 : 8;
    groups = (rows + count - 1) / count;
    pace = wide ? 1 : count;
    step = wide ? groups : 1;
  }
  INLINE int64_t first(int64_t group) const { return group * pace; }
  INLINE int64_t in(int64_t group) const {
    const int64_t left = (rows - first(group) + step - 1) / step;
    return left < count ? left : count;
  }
};

// Calls work<packs, narrow>(first pack) over all packs of a strip: four whole ones at a time, then one by one.
template <class T, class Work>
INLINE void each_packs(Strip<T> strip, Work work) {
  if (strip.narrow()) return work.template operator()<1, true>(0);
  int64_t p = 0;
  for (; (p + 4) * Strip<T>::size <= strip.width; p += 4) work.template operator()<4, false>(p);
  for (; p < strip.packs(); ++p) work.template operator()<1, false>(p);
}

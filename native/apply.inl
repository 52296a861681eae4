// apply: y = (x - center) * scale + shift. Two roundings after an exact difference, and no fma: composed tensor
// operations give the same bits.

template <class T, bool Stream>
INLINE void apply_run(const T* x, T* y, int64_t length, T center, T scale, T shift) {
  using P = Pack<T>;
  const P c = P::of(center), a = P::of(scale), b = P::of(shift);
  const auto at = [&](int64_t i) { return (P::load(x + i) - c) * a + b; };
  if (length < P::size) {
    ((P::load_first(x, length, center) - c) * a + b).store_first(y, length);
    return;
  }
  int64_t i = 0;
  if constexpr (Stream) {  // one ordinary store, then from the next aligned address on
    at(0).store(y);
    i = (64 - reinterpret_cast<uintptr_t>(y) % 64) % 64 / sizeof(T);
  }
  for (; i + P::size <= length; i += P::size) at(i).template put<Stream>(y + i);
  if (i < length) at(length - P::size).store(y + length - P::size);
}

template <class T, bool Stream>
INLINE void apply_middle(const T* x, Layout from, T* y, Layout to, Tile tile, ApplyNumbers<T> n) {
  for (int64_t o = tile.o0; o < tile.o1; ++o)
    for (int64_t c = tile.c0; c < tile.c1; ++c)
      apply_run<T, Stream>(x + o * from.stride + c * from.inner + tile.i0, y + o * to.stride + c * to.inner + tile.i0,
                           tile.i1 - tile.i0, n.center[c], n.scale[c], n.shift[c]);
}

template <class T, bool Stream>
INLINE void apply_last(const T* x, Layout from, T* y, Layout to, Tile tile, ApplyNumbers<T> n) {
  using P = Pack<T>;
  const Strip<T> strip{tile.c1 - tile.c0};
  const ApplyNumbers<T> here{n.center + tile.c0, n.scale + tile.c0, n.shift + tile.c0};
  for (int64_t first = tile.o0, last; first < tile.o1; first = last) {
    last = first + strip.rows_together() < tile.o1 ? first + strip.rows_together() : tile.o1;
    each_packs(strip, [&]<int packs, bool narrow>(int64_t p) {
      P center[packs], scale[packs], shift[packs];
      for (int j = 0; j < packs; ++j) {
        center[j] = strip.template load<narrow>(here.center, p + j);
        scale[j] = strip.template load<narrow>(here.scale, p + j);
        shift[j] = strip.template load<narrow>(here.shift, p + j);
      }
      for (int64_t o = first; o < last; ++o)
        for (int j = 0; j < packs; ++j) {
          const P value = strip.template load<narrow>(x + o * from.stride + tile.c0, p + j);
          strip.template put<narrow, Stream>((value - center[j]) * scale[j] + shift[j], y + o * to.stride + tile.c0, p + j);
        }
    });
  }
}

// Rows can be streamed where every pack of every row begins at a multiple of 64 bytes.
template <class T>
INLINE bool rows_are_aligned(const T* y, Layout to, Tile tile) {
  const auto aligned = [](int64_t bytes) { return bytes % 64 == 0; };
  return aligned(reinterpret_cast<int64_t>(y)) && aligned(to.stride * sizeof(T)) && aligned(tile.c0 * sizeof(T)) &&
         aligned((tile.c1 - tile.c0) * sizeof(T));
}

template <class T>
void apply(const T* x, Layout from, T* y, Layout to, Tile tile, ApplyNumbers<T> n, bool stream) {
  if (from.inner == 1) {
    if (stream && rows_are_aligned(y, to, tile)) apply_last<T, true>(x, from, y, to, tile, n);
    else apply_last<T, false>(x, from, y, to, tile, n);
  } else {
    if (stream) apply_middle<T, true>(x, from, y, to, tile, n);
    else apply_middle<T, false>(x, from, y, to, tile, n);
  }
  if (stream) finish_streaming();
}

// grad_apply: dx = scale * (dz + ((x - center) * slope + level)), with scale = gamma * rstd, slope = -rstd * dgamma / m and
// level = -dbeta / m, corrected for what the center misses of the mean. (x - center) * slope is of the order of dz: no
// product leaves the range of T that the result does not leave.

template <class T, bool Stream>
INLINE void grad_apply_run(const T* x, const T* dy, T* dx, int64_t length, int64_t c, GradNumbers<T> n) {
  using P = Pack<T>;
  const P center = P::of(n.center[c]), scale = P::of(n.scale[c]), slope = P::of(n.slope[c]), level = P::of(n.level[c]);
  const auto value = [&](P xs, P dz) { return scale * (dz + ((xs - center) * slope + level)); };
  const auto at = [&](int64_t i) { return value(P::load(x + i), P::load(dy + i)); };
  if (length < P::size) {
    value(P::load_first(x, length, n.center[c]), P::load_first(dy, length, T(0))).store_first(dx, length);
    return;
  }
  int64_t i = 0;
  if constexpr (Stream) {
    at(0).store(dx);
    i = (64 - reinterpret_cast<uintptr_t>(dx) % 64) % 64 / sizeof(T);
  }
  for (; i + P::size <= length; i += P::size) at(i).template put<Stream>(dx + i);
  if (i < length) at(length - P::size).store(dx + length - P::size);
}

template <class T, bool Stream>
INLINE void grad_apply_middle(const T* x, Layout from, const T* dy, T* dx, Layout dense, Tile tile, GradNumbers<T> n) {
  for (int64_t o = tile.o0; o < tile.o1; ++o)
    for (int64_t c = tile.c0; c < tile.c1; ++c) {
      const int64_t at = o * dense.stride + c * dense.inner + tile.i0;
      grad_apply_run<T, Stream>(x + o * from.stride + c * from.inner + tile.i0, dy + at, dx + at, tile.i1 - tile.i0, c, n);
    }
}

template <class T, bool Stream>
INLINE void grad_apply_last(const T* x, Layout from, const T* dy, T* dx, Layout dense, Tile tile, GradNumbers<T> n) {
  using P = Pack<T>;
  const int64_t c = tile.c0;
  const Strip<T> strip{tile.c1 - c};
  for (int64_t first = tile.o0, last; first < tile.o1; first = last) {
    last = first + strip.rows_together() < tile.o1 ? first + strip.rows_together() : tile.o1;
    each_packs(strip, [&]<int packs, bool narrow>(int64_t p) {
      P center[packs], scale[packs], slope[packs], level[packs];
      for (int j = 0; j < packs; ++j) {
        center[j] = strip.template load<narrow>(n.center + c, p + j);
        scale[j] = strip.template load<narrow>(n.scale + c, p + j);
        slope[j] = strip.template load<narrow>(n.slope + c, p + j);
        level[j] = strip.template load<narrow>(n.level + c, p + j);
      }
      for (int64_t o = first; o < last; ++o) {
        const T *row = x + o * from.stride + c, *dy_row = dy + o * dense.stride + c;
        for (int j = 0; j < packs; ++j) {
          const P d = strip.template load<narrow>(row, p + j) - center[j];
          const P dz = strip.template load<narrow>(dy_row, p + j);
          strip.template put<narrow, Stream>(scale[j] * (dz + (d * slope[j] + level[j])), dx + o * dense.stride + c, p + j);
        }
      }
    });
  }
}

template <class T>
void grad_apply(const T* x, Layout from, const T* dy, T* dx, Layout dense, Tile tile, GradNumbers<T> n, bool stream) {
  if (from.inner == 1) {
    if (stream && rows_are_aligned(dx, dense, tile)) grad_apply_last<T, true>(x, from, dy, dx, dense, tile, n);
    else grad_apply_last<T, false>(x, from, dy, dx, dense, tile, n);
  } else {
    if (stream) grad_apply_middle<T, true>(x, from, dy, dx, dense, tile, n);
    else grad_apply_middle<T, false>(x, from, dy, dx, dense, tile, n);
  }
  if (stream) finish_streaming();
}

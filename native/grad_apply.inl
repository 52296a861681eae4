// grad_apply: dx = scale * (dz - (mean_dz + x_hat * mean_dz_x_hat)), with x_hat as in grad_sums and scale = gamma * rstd.
// x_hat is of order one, so no product leaves the range of T that the result does not leave.

template <class T>
INLINE Pack<T> grad_value(Pack<T> x, Pack<T> dz, Pack<T> center, Pack<T> rstd, Pack<T> offset, Pack<T> scale,
                          Pack<T> mean_dz, Pack<T> mean_dz_x_hat) {
  const Pack<T> x_hat = (x - center) * rstd + offset;
  return scale * (dz - (mean_dz + x_hat * mean_dz_x_hat));
}

template <class T, bool Stream>
INLINE void grad_apply_run(const T* x, const T* dy, T* dx, int64_t length, int64_t c, XHatNumbers<T> n, GradNumbers<T> g) {
  using P = Pack<T>;
  const P center = P::of(n.center[c]), rstd = P::of(n.rstd[c]), offset = P::of(n.offset[c]), scale = P::of(g.scale[c]),
          mean_dz = P::of(g.mean_dz[c]), mean_dz_x_hat = P::of(g.mean_dz_x_hat[c]);
  const auto value = [&](P xs, P dz) { return grad_value(xs, dz, center, rstd, offset, scale, mean_dz, mean_dz_x_hat); };
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
INLINE void grad_apply_middle(const T* x, Layout from, const T* dy, T* dx, Layout dense, Tile tile, XHatNumbers<T> n,
                              GradNumbers<T> g) {
  for (int64_t o = tile.o0; o < tile.o1; ++o)
    for (int64_t c = tile.c0; c < tile.c1; ++c) {
      const int64_t at = o * dense.stride + c * dense.inner + tile.i0;
      grad_apply_run<T, Stream>(x + o * from.stride + c * from.inner + tile.i0, dy + at, dx + at, tile.i1 - tile.i0, c, n, g);
    }
}

template <class T, bool Stream>
INLINE void grad_apply_last(const T* x, Layout from, const T* dy, T* dx, Layout dense, Tile tile, XHatNumbers<T> n,
                            GradNumbers<T> g) {
  using P = Pack<T>;
  const Strip<T> strip{tile.c1 - tile.c0};
  const int64_t c = tile.c0;
  const XHatNumbers<T> nc{n.center + c, n.rstd + c, n.offset + c};
  const GradNumbers<T> gc{g.scale + c, g.mean_dz + c, g.mean_dz_x_hat + c};
  for (int64_t first = tile.o0, last; first < tile.o1; first = last) {
    last = first + strip.rows_together() < tile.o1 ? first + strip.rows_together() : tile.o1;
    each_packs(strip, [&]<int packs, bool narrow>(int64_t p) {
      P center[packs], rstd[packs], offset[packs], scale[packs], mean_dz[packs], mean_dz_x_hat[packs];
      for (int j = 0; j < packs; ++j) {
        center[j] = strip.template load<narrow>(nc.center, p + j);
        rstd[j] = strip.template load<narrow>(nc.rstd, p + j);
        offset[j] = strip.template load<narrow>(nc.offset, p + j);
        scale[j] = strip.template load<narrow>(gc.scale, p + j);
        mean_dz[j] = strip.template load<narrow>(gc.mean_dz, p + j);
        mean_dz_x_hat[j] = strip.template load<narrow>(gc.mean_dz_x_hat, p + j);
      }
      for (int64_t o = first; o < last; ++o) {
        const T *row = x + o * from.stride + c, *dy_row = dy + o * dense.stride + c;
        for (int j = 0; j < packs; ++j) {
          const P value = grad_value(strip.template load<narrow>(row, p + j), strip.template load<narrow>(dy_row, p + j),
                                     center[j], rstd[j], offset[j], scale[j], mean_dz[j], mean_dz_x_hat[j]);
          strip.template put<narrow, Stream>(value, dx + o * dense.stride + c, p + j);
        }
      }
    });
  }
}

template <class T>
void grad_apply(const T* x, Layout from, const T* dy, T* dx, Layout dense, Tile tile, XHatNumbers<T> n, GradNumbers<T> g,
                bool stream) {
  if (from.inner == 1) {
    if (stream && rows_are_aligned(dx, dense, tile)) grad_apply_last<T, true>(x, from, dy, dx, dense, tile, n, g);
    else grad_apply_last<T, false>(x, from, dy, dx, dense, tile, n, g);
  } else {
    if (stream) grad_apply_middle<T, true>(x, from, dy, dx, dense, tile, n, g);
    else grad_apply_middle<T, false>(x, from, dy, dx, dense, tile, n, g);
  }
  if (stream) finish_streaming();
}

// grad_sums: sum dz and sum dz * (x - center) * rstd, per channel. The gap makes dbeta and dgamma of them. rstd is not left
// for the gap, so that products stay of the order of dz whatever the scale of x. They are added eight deep in T, then in
// double.

template <class T>
struct TwoSums {
  ExactSum<T> dz, dz_x_hat;
};

// `next` and `next_dy`: the runs that follow, whose beginnings no prefetcher of the machine can foresee.
template <class T>
INLINE void add_run(const T* x, const T* dy, int64_t length, T center, T rstd, TwoSums<T>& sums, const T* next,
                    const T* next_dy) {
  using P = Pack<T>;
  const P c = P::of(center), r = P::of(rstd);
  const auto product = [&](P xs, P dz) { return dz * ((xs - c) * r); };
  int64_t i = 0;
  for (; i + 8 * P::size <= length; i += 8 * P::size) {
    P t[8], u[8];
    for (int k = 0; k < 8; ++k) {
      prefetch(next + i + k * P::size);
      prefetch(next_dy + i + k * P::size);
      t[k] = P::load(dy + i + k * P::size);
      u[k] = product(P::load(x + i + k * P::size), t[k]);
    }
    sums.dz.add(widen(tree(t)));
    sums.dz_x_hat.add(widen(tree(u)));
  }
  const auto add = [&](P xs, P dz) {
    sums.dz.add(widen(dz));
    sums.dz_x_hat.add(widen(product(xs, dz)));
  };
  for (; i + P::size <= length; i += P::size) add(P::load(x + i), P::load(dy + i));
  if (i < length) add(load_uncounted(x, length, center), load_uncounted(dy, length, T(0)));
}

template <class T>
INLINE void grad_sums_middle(const T* x, Layout from, const T* dy, Layout dense, Tile tile, XHatNumbers<T> n, Sums out) {
  constexpr int64_t block = kBlockBytes / sizeof(T);
  const int64_t length = tile.i1 - tile.i0;
  for (int64_t c = tile.c0; c < tile.c1; ++c) {
    double dz = 0, dz_tail = 0, dz_x_hat = 0, dz_x_hat_tail = 0;
    TwoSums<T> sums;
    int64_t pending = 0;
    const auto flush = [&] {
      two_sum(dz, dz_tail, total(sums.dz));
      two_sum(dz_x_hat, dz_x_hat_tail, total(sums.dz_x_hat));
      sums = TwoSums<T>{};
      pending = 0;
    };
    for (int64_t o = tile.o0; o < tile.o1; ++o)
      for (int64_t i = tile.i0; i < tile.i1; i += block) {
        const bool more = i + block < tile.i1;
        const int64_t some = more ? block : tile.i1 - i;
        const T* run = x + o * from.stride + c * from.inner + i;
        const T* dy_run = dy + o * dense.stride + c * dense.inner + i;
        add_run(run, dy_run, some, n.center[c], n.rstd[c], sums,
                more ? run + block : run - i + tile.i0 + from.stride,
                more ? dy_run + block : dy_run - i + tile.i0 + dense.stride);
        pending += some;
        if (pending >= block) flush();
      }
    if (pending > 0) flush();
    out.first[c] = dz;
    out.first_tail[c] = dz_tail;
    out.second[c] = dz_x_hat;
    out.second_tail[c] = dz_x_hat_tail;
  }
}

template <class T>
struct StripGradSums {
  double dz[kLanes], dz_tail[kLanes], dz_x_hat[kLanes], dz_x_hat_tail[kLanes];
  double block_dz[kLanes], block_dz_x_hat[kLanes], block_dz_tail[kLanes], block_dz_x_hat_tail[kLanes];
};

template <class T>
INLINE void grad_sums_rows(const T* x, int64_t x_stride, const T* dy, int64_t dy_stride, int64_t some, Strip<T> strip,
                           XHatNumbers<T> n, StripGradSums<T>& g) {
  using P = Pack<T>;
  each_packs(strip, [&]<int packs, bool narrow>(int64_t p) {
    P center[packs], rstd[packs], sum[packs], product[packs];
    for (int j = 0; j < packs; ++j) {
      center[j] = strip.template load<narrow>(n.center, p + j);
      rstd[j] = strip.template load<narrow>(n.rstd, p + j);
      sum[j] = product[j] = P::zero();
    }
    for (int64_t k = 0; k < some; ++k)
      for (int j = 0; j < packs; ++j) {
        if constexpr (packs == 1 && !narrow) {  // eight rows are no long piece
          prefetch(x + (8 + k) * x_stride + strip.column(p + j));
          prefetch(dy + (8 + k) * dy_stride + strip.column(p + j));
        }
        const P dz = strip.template load<narrow>(dy + k * dy_stride, p + j);
        const P x_hat = (strip.template load<narrow>(x + k * x_stride, p + j) - center[j]) * rstd[j];
        sum[j] = sum[j] + dz;
        product[j] = product[j] + dz * x_hat;
      }
    for (int j = 0; j < packs; ++j) {
      const int64_t at = (p + j) * P::size;
      add_to(g.block_dz + at, g.block_dz_tail + at, widen(sum[j]));
      add_to(g.block_dz_x_hat + at, g.block_dz_x_hat_tail + at, widen(product[j]));
    }
  });
}

template <class T>
INLINE void grad_sums_last(const T* x, Layout from, const T* dy, Layout dense, Tile tile, XHatNumbers<T> n, Sums out) {
  constexpr int64_t block = 512;  // rows between flushes: for floats a chain of 64 sums in double
  const Strip<T> strip{tile.c1 - tile.c0};
  const int64_t lanes = strip.packs() * Pack<T>::size;
  const XHatNumbers<T> here{n.center + tile.c0, n.rstd + tile.c0};
  StripGradSums<T> g;
  for (int64_t k = 0; k < lanes; ++k) g.dz[k] = g.dz_tail[k] = g.dz_x_hat[k] = g.dz_x_hat_tail[k] = 0;
  for (int64_t first = tile.o0; first < tile.o1; first += block) {
    const int64_t last = first + block < tile.o1 ? first + block : tile.o1;
    for (int64_t k = 0; k < lanes; ++k)
      g.block_dz[k] = g.block_dz_x_hat[k] = g.block_dz_tail[k] = g.block_dz_x_hat_tail[k] = 0;
    for (int64_t o = first; o < last; o += 8)
      grad_sums_rows(x + o * from.stride + tile.c0, from.stride, dy + o * dense.stride + tile.c0, dense.stride,
                     last - o < 8 ? last - o : 8, strip, here, g);
    for (int64_t k = 0; k < lanes; ++k) {
      two_sum(g.dz[k], g.dz_tail[k], g.block_dz[k]);
      two_sum(g.dz_x_hat[k], g.dz_x_hat_tail[k], g.block_dz_x_hat[k]);
      if constexpr (sizeof(T) == 8) {
        g.dz_tail[k] += g.block_dz_tail[k];
        g.dz_x_hat_tail[k] += g.block_dz_x_hat_tail[k];
      }
    }
  }
  strip.spread(g.dz, out.first + tile.c0);
  strip.spread(g.dz_tail, out.first_tail + tile.c0);
  strip.spread(g.dz_x_hat, out.second + tile.c0);
  strip.spread(g.dz_x_hat_tail, out.second_tail + tile.c0);
}

template <class T>
void grad_sums(const T* x, Layout from, const T* dy, Layout dense, Tile tile, XHatNumbers<T> n, Sums out) {
  if (from.inner == 1) grad_sums_last(x, from, dy, dense, tile, n, out);
  else grad_sums_middle(x, from, dy, dense, tile, n, out);
}

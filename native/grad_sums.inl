// grad_sums: sum dz and sum dz * (x - center) * rstd, per channel. The gap makes dbeta and dgamma of them. rstd is not left
// for the gap, so that products stay of the order of dz whatever the scale of x. They are added eight deep in T, then in
// double. dz is dy times the activation's derivative at z, which is computed as apply computed it, or read from its bits.

template <class T>
struct TwoSums {
  ExactSum<T> dz, dz_x_hat;
  Eights<T> singles, products;
  INLINE void add(Pack<T> one, Pack<T> product) {
    singles.add(one, dz);
    products.add(product, dz_x_hat);
  }
  INLINE void flush() {
    singles.flush(dz);
    products.flush(dz_x_hat);
  }
};

// A run of one channel in backward. `next` and `next_dy`: the runs that follow, whose beginnings no prefetcher of the
// machine can foresee.
template <class D>
struct GradRun {
  const D *x, *dy, *residual;
  const Word<Computed<D>>* bits;
  int64_t length;
  const D *next, *next_dy;
};

// dz of n packs, of which d = x - center is known.
template <How how, bool residual, int n, class D, class T>
INLINE void dz_of(Pack<T> (&dy)[n], const Pack<T> (&d)[n], const D* r, const Word<T>* bits, Pack<T> scale, Pack<T> shift,
                  const Called<T>& called) {
  through<how>(dy, bits, called, [&](int k) {
    Pack<T> z = d[k] * scale + shift;
    if constexpr (residual) z = z + load(r + k * Pack<T>::size);
    return z;
  });
}

template <How how, bool residual, class D, class T>
INLINE void add_run(GradRun<D> g, int64_t c, Numbers<T> n, const Called<T>& called, TwoSums<T>& sums) {
  using P = Pack<T>;
  const P center = P::of(n.center[c]), rstd = P::of(n.rstd[c]), scale = P::of(n.scale[c]), shift = P::of(n.shift[c]);
  int64_t i = 0;
  const auto bits = [&](int64_t i) { return how == How::told && g.bits ? g.bits + i / P::size : nullptr; };
  for (; i + 8 * P::size <= g.length; i += 8 * P::size) {
    P d[8], dz[8], u[8];
    for (int k = 0; k < 8; ++k) {
      prefetch(g.next + i + k * P::size);
      prefetch(g.next_dy + i + k * P::size);
      dz[k] = load(g.dy + i + k * P::size);
      d[k] = load(g.x + i + k * P::size) - center;
    }
    dz_of<how, residual>(dz, d, g.residual + i, bits(i), scale, shift, called);
    for (int k = 0; k < 8; ++k) u[k] = dz[k] * (d[k] * rstd);
    sums.dz.add(widen(tree(dz)));
    sums.dz_x_hat.add(widen(tree(u)));
  }
  const auto add = [&](P dz, P d) { sums.add(dz, dz * (d * rstd)); };
  for (; i + P::size <= g.length; i += P::size) {
    P dz[1] = {load(g.dy + i)}, d[1] = {load(g.x + i) - center};
    dz_of<how, residual>(dz, d, g.residual + i, bits(i), scale, shift, called);
    add(dz[0], d[0]);
  }
  if (i == g.length) return;
  if (g.length < P::size) {
    P dz[1] = {load_first(g.dy, g.length)}, d[1] = {load_uncounted(g.x, g.length, n.center[c]) - center};
    through<how>(dz, bits(0), called, [&](int) {
      P z = d[0] * scale + shift;
      if constexpr (residual) z = z + load_first(g.residual, g.length);
      return z;
    });
    add(uncounted_first(dz[0], g.length), d[0]);
  } else {
    const int64_t at = g.length - P::size;
    P dz[1] = {load(g.dy + at)}, d[1] = {load(g.x + at) - center};
    dz_of<how, residual>(dz, d, g.residual + at, bits(g.length - 1), scale, shift, called);
    add(uncounted(dz[0], g.length, T(0)), uncounted(d[0], g.length, T(0)));
  }
}

template <How how, bool residual, class D, class T>
INLINE void grad_sums_middle(const D* x, Layout from, const D* dy, Layout dense, Tile tile, Numbers<T> n, After<D> after,
                             Sums out) {
  constexpr int64_t block = kBlockBytes / sizeof(T);
  const Called<T> called(after.activation);
  const int64_t words = words_in(dense.inner, sizeof(T));
  for (int64_t c = tile.c0; c < tile.c1; ++c) {
    double dz = 0, dz_tail = 0, dz_x_hat = 0, dz_x_hat_tail = 0;
    TwoSums<T> sums;
    int64_t pending = 0;
    const auto flush = [&] {
      sums.flush();
      two_sum(dz, dz_tail, total(sums.dz));
      two_sum(dz_x_hat, dz_x_hat_tail, total(sums.dz_x_hat));
      sums = TwoSums<T>{};
      pending = 0;
    };
    for (int64_t o = tile.o0; o < tile.o1; ++o)
      for (int64_t i = tile.i0, some; i < tile.i1; i += some) {
        // Less than a pack is no block of its own: its bits lie in a word that overlaps the one before it.
        const bool more = i + block + Pack<T>::size <= tile.i1;
        some = more ? block : tile.i1 - i;
        const int64_t at = o * dense.stride + c * dense.inner + i;
        const D* run = x + o * from.stride + c * from.inner + i;
        add_run<how, residual>(
            GradRun<D>{run, dy + at, residual ? after.residual + at : nullptr,
                       how == How::told && after.bits ? after.bits + (o * dense.channels + c) * words + words_in(i, sizeof(T)) : nullptr, some,
                       more ? run + block : run - i + tile.i0 + from.stride,
                       dy + (more ? at + block : at - i + tile.i0 + dense.stride)},
            c, n, called, sums);
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

// The rows of a strip in backward; pointers at its first column.
template <class D>
struct GradRows {
  const D *x, *dy, *residual;
  const Word<Computed<D>>* bits;
  int64_t x_stride, dy_stride, words;
};

// dz and x - center of one row's packs.
template <How how, bool residual, bool narrow, int packs, class D, class T>
INLINE void dz_of_row(Pack<T> (&dz)[packs], Pack<T> (&d)[packs], const GradRows<D>& g, int64_t row, int64_t p, Strip<T> strip,
                      const Pack<T> (&center)[packs], const Pack<T> (&scale)[packs], const Pack<T> (&shift)[packs],
                      const Called<T>& called) {
  for (int j = 0; j < packs; ++j) {
    d[j] = strip.template load<narrow>(g.x + row * g.x_stride, p + j) - center[j];
    dz[j] = strip.template load<narrow>(g.dy + row * g.dy_stride, p + j);
  }
  through<how>(dz, how == How::told && g.bits ? g.bits + row * g.words + p : nullptr, called, [&](int j) {
    Pack<T> z = d[j] * scale[j] + shift[j];
    if constexpr (residual) z = z + strip.template load<narrow>(g.residual + row * g.dy_stride, p + j);
    return z;
  });
}

// Up to eight rows are added in T; of sixteen, both eights before they go to double.
template <How how, bool residual, class D, class T>
INLINE void grad_sums_rows(const GradRows<D>& g, int64_t some, Strip<T> strip, Numbers<T> n, const Called<T>& called,
                           StripGradSums<T>& s) {
  using P = Pack<T>;
  each_packs(strip, [&]<int packs, bool narrow>(int64_t p) {
    P center[packs], rstd[packs], scale[packs], shift[packs], sum[packs], product[packs];
    for (int j = 0; j < packs; ++j) {
      center[j] = strip.template load<narrow>(n.center, p + j);
      rstd[j] = strip.template load<narrow>(n.rstd, p + j);
      scale[j] = strip.template load<narrow>(n.scale, p + j);
      shift[j] = strip.template load<narrow>(n.shift, p + j);
    }
    strip.template foresee<packs>(g.x, g.x_stride, p);
    strip.template foresee<packs>(g.dy, g.dy_stride, p);
    const auto add_eight = [&](int64_t from, int64_t to) {
      for (int j = 0; j < packs; ++j) sum[j] = product[j] = P::zero();
      for (int64_t k = from; k < to; ++k) {
        P dz[packs], d[packs];
        dz_of_row<how, residual, narrow>(dz, d, g, k, p, strip, center, scale, shift, called);
        for (int j = 0; j < packs; ++j) {
          sum[j] = sum[j] + dz[j];
          product[j] = product[j] + dz[j] * (d[j] * rstd[j]);
        }
      }
    };
    add_eight(0, some < 8 ? some : 8);
    if (some > 8) {
      P first_sum[packs], first_product[packs];
      for (int j = 0; j < packs; ++j) {
        first_sum[j] = sum[j];
        first_product[j] = product[j];
      }
      add_eight(8, some);
      for (int j = 0; j < packs; ++j) {
        sum[j] = first_sum[j] + sum[j];
        product[j] = first_product[j] + product[j];
      }
    }
    for (int j = 0; j < packs; ++j) {
      const int64_t at = (p + j) * P::size;
      add_to(s.block_dz + at, s.block_dz_tail + at, widen(sum[j]));
      add_to(s.block_dz_x_hat + at, s.block_dz_x_hat_tail + at, widen(product[j]));
    }
  });
}

template <class T>
INLINE Numbers<T> from_column(Numbers<T> n, int64_t c) {
  return {n.center + c, n.scale + c, n.shift + c, n.rstd + c, n.slope + c, n.level + c};
}
template <class D>
INLINE GradRows<D> rows_from(const D* x, Layout from, const D* dy, Layout dense, const After<D>& after, int64_t o, int64_t c) {
  using T = Computed<D>;
  const int64_t words = words_in(dense.channels, sizeof(T)), at = o * dense.stride + c;
  return {x + o * from.stride + c, dy + at, after.residual ? after.residual + at : nullptr,
          after.bits ? after.bits + o * words + words_in(c, sizeof(T)) : nullptr, from.stride, dense.stride, words};
}

template <How how, bool residual, class D, class T>
INLINE void grad_sums_last(const D* x, Layout from, const D* dy, Layout dense, Tile tile, Numbers<T> n, After<D> after,
                           Sums out) {
  constexpr int64_t block = 512;  // rows between flushes: for floats a chain of 64 sums in double at most
  const Called<T> called(after.activation);
  const Strip<T> strip{tile.c1 - tile.c0};
  const int64_t lanes = strip.packs() * Pack<T>::size;
  StripGradSums<T> s;
  for (int64_t k = 0; k < lanes; ++k) s.dz[k] = s.dz_tail[k] = s.dz_x_hat[k] = s.dz_x_hat_tail[k] = 0;
  for (int64_t first = tile.o0; first < tile.o1; first += block) {
    const int64_t last = first + block < tile.o1 ? first + block : tile.o1;
    for (int64_t k = 0; k < lanes; ++k)
      s.block_dz[k] = s.block_dz_x_hat[k] = s.block_dz_tail[k] = s.block_dz_x_hat_tail[k] = 0;
    // The prefetching of wide rows looks eight ahead.
    const int64_t together = strip.packs() <= 4 ? 16 : 8;
    for (int64_t o = first; o < last; o += together)
      grad_sums_rows<how, residual>(rows_from(x, from, dy, dense, after, o, tile.c0), last - o < together ? last - o : together,
                                    strip, from_column(n, tile.c0), called, s);
    for (int64_t k = 0; k < lanes; ++k) {
      two_sum(s.dz[k], s.dz_tail[k], s.block_dz[k]);
      two_sum(s.dz_x_hat[k], s.dz_x_hat_tail[k], s.block_dz_x_hat[k]);
      if constexpr (sizeof(T) == 8) {
        s.dz_tail[k] += s.block_dz_tail[k];
        s.dz_x_hat_tail[k] += s.block_dz_x_hat_tail[k];
      }
    }
  }
  strip.spread(s.dz, out.first + tile.c0);
  strip.spread(s.dz_tail, out.first_tail + tile.c0);
  strip.spread(s.dz_x_hat, out.second + tile.c0);
  strip.spread(s.dz_x_hat_tail, out.second_tail + tile.c0);
}

template <class D, class T>
void grad_sums(const D* x, Layout from, const D* dy, Layout dense, Tile tile, Numbers<T> n, After<D> after, Sums out) {
  backward_kinds(after, [&]<How how, bool residual>() {
    if (from.inner == 1) grad_sums_last<how, residual>(x, from, dy, dense, tile, n, after, out);
    else grad_sums_middle<how, residual>(x, from, dy, dense, tile, n, after, out);
  });
}

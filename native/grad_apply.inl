// grad_apply: dx = scale * (dz + ((x - center) * slope + level)), with scale = gamma * rstd, slope = -rstd * dgamma / m and
// level = -dbeta / m, corrected for what the center misses of the mean. (x - center) * slope is of the order of dz: no
// product leaves the range of T that the result does not leave. With fixed statistics there is no slope: dx = scale * dz.
// dz is the residual's gradient too, written where it is wanted.

// dx of a pack; `fixed`: without the terms that come from the statistics, whatever x is.
template <class T>
INLINE Pack<T> dx_of(Pack<T> dz, Pack<T> d, Pack<T> scale, Pack<T> slope, Pack<T> level, bool fixed) {
  return fixed ? scale * dz : scale * (dz + (d * slope + level));
}

template <How how, bool residual, bool Stream, class D, class T>
INLINE void grad_apply_run(GradRun<D> g, D* dx, D* dr, int64_t c, Numbers<T> n, const Called<T>& called) {
  using P = Pack<T>;
  const bool fixed = !n.slope;
  const P center = P::of(n.center[c]), scale = P::of(n.scale[c]), shift = P::of(n.shift[c]),
          slope = P::of(fixed ? T(0) : n.slope[c]), level = P::of(fixed ? T(0) : n.level[c]);
  const auto bits = [&](int64_t i) { return how == How::told && g.bits ? g.bits + i / P::size : nullptr; };
  const auto value = [&](P dz, P d) { return dx_of(dz, d, scale, slope, level, fixed); };
  if (g.length < P::size) {
    P dz[1] = {load_first(g.dy, g.length)}, d[1] = {load_first(g.x, g.length) - center};
    through<how>(dz, bits(0), called, [&](int) {
      P z = d[0] * scale + shift;
      if constexpr (residual) z = z + load_first(g.residual, g.length);
      return z;
    });
    if (dr) store_first(dz[0], dr, g.length);
    return store_first(value(dz[0], d[0]), dx, g.length);
  }
  const auto step = [&]<int many, bool past>(int64_t i, const Word<T>* words) {
    P dz[many], d[many];
    for (int k = 0; k < many; ++k) {
      dz[k] = load(g.dy + i + k * P::size);
      d[k] = load(g.x + i + k * P::size) - center;
    }
    dz_of<how, residual>(dz, d, g.residual + i, words, scale, shift, called);
    if (how != How::plain && dr) put_all<past>(dz, dr + i);
    for (int k = 0; k < many; ++k) d[k] = value(dz[k], d[k]);
    put_all<past>(d, dx + i);
  };
  int64_t i = 0;
  if constexpr (Stream) {
    step.template operator()<1, false>(0, bits(0));
    i = (kAligned<D> - reinterpret_cast<uintptr_t>(dx) % kAligned<D>) % kAligned<D> / sizeof(D);
  }
  for (; i + 4 * P::size <= g.length; i += 4 * P::size) step.template operator()<4, Stream>(i, bits(i));
  for (; i + P::size <= g.length; i += P::size) step.template operator()<1, Stream>(i, bits(i));
  if (i < g.length) step.template operator()<1, false>(g.length - P::size, bits(g.length - 1));
}

template <How how, bool residual, bool Stream, class D, class T>
INLINE void grad_apply_middle(const D* x, Layout from, const D* dy, D* dx, Layout dense, Tile tile, Numbers<T> n, After<D> after) {
  const Called<T> called(after.activation);
  const int64_t words = words_in(dense.inner, sizeof(T));
  for (int64_t o = tile.o0; o < tile.o1; ++o)
    for (int64_t c = tile.c0; c < tile.c1; ++c) {
      const int64_t at = o * dense.stride + c * dense.inner + tile.i0;
      grad_apply_run<how, residual, Stream>(
          GradRun<D>{x + o * from.stride + c * from.inner + tile.i0, dy + at, residual ? after.residual + at : nullptr,
                     how == How::told && after.bits ? after.bits + (o * dense.channels + c) * words + words_in(tile.i0, sizeof(T)) : nullptr,
                     tile.i1 - tile.i0, nullptr, nullptr},
          dx + at, after.dresidual ? after.dresidual + at : nullptr, c, n, called);
    }
}

template <How how, bool residual, bool Stream, class D, class T>
INLINE void grad_apply_last(const D* x, Layout from, const D* dy, D* dx, Layout dense, Tile tile, Numbers<T> n, After<D> after) {
  using P = Pack<T>;
  const Called<T> called(after.activation);
  const int64_t c = tile.c0;
  const bool fixed = !n.slope;
  const Strip<T> strip{tile.c1 - c};
  const GradRows<D> g = rows_from(x, from, dy, dense, after, 0, c);
  D *to = dx + c, *to_residual = after.dresidual ? after.dresidual + c : nullptr;
  const Together together(strip, tile.o1 - tile.o0);
  for (int64_t group = 0; group < together.groups; ++group) {
    const int64_t first = tile.o0 + together.first(group), many = together.in(group);
    each_packs(strip, [&]<int packs, bool narrow>(int64_t p) {
      P center[packs], scale[packs], shift[packs], slope[packs], level[packs];
      for (int j = 0; j < packs; ++j) {
        center[j] = strip.template load<narrow>(n.center + c, p + j);
        scale[j] = strip.template load<narrow>(n.scale + c, p + j);
        if (how != How::plain) shift[j] = strip.template load<narrow>(n.shift + c, p + j);
        slope[j] = fixed ? P::zero() : strip.template load<narrow>(n.slope + c, p + j);
        level[j] = fixed ? P::zero() : strip.template load<narrow>(n.level + c, p + j);
      }
      for (int64_t k = 0; k < many; ++k) {
        const int64_t o = first + k * together.step;
        P dz[packs], d[packs];
        dz_of_row<how, residual, narrow>(dz, d, g, o, p, strip, center, scale, shift, called);
        if (how != How::plain && to_residual) strip.template put_all<narrow, Stream>(dz, to_residual + o * dense.stride, p);
        for (int j = 0; j < packs; ++j) d[j] = dx_of(dz[j], d[j], scale[j], slope[j], level[j], fixed);
        strip.template put_all<narrow, Stream>(d, to + o * dense.stride, p);
      }
    });
  }
}

template <class D, class T>
void grad_apply(const D* x, Layout from, const D* dy, D* dx, Layout dense, Tile tile, Numbers<T> n, After<D> after, bool stream) {
  const bool last = from.inner == 1;
  // dx and dresidual go out together: where one is aligned, the other must be.
  if (after.dresidual) stream = stream && (reinterpret_cast<uintptr_t>(dx) - reinterpret_cast<uintptr_t>(after.dresidual)) % kAligned<D> == 0;
  if (last) stream = stream && rows_are_aligned(dx, dense, tile);
  else stream = stream && runs_can_stream(dx, dense, after.bits != nullptr);
  backward_kinds(after, [&]<How how, bool residual>() {
    if (last && stream) grad_apply_last<how, residual, true>(x, from, dy, dx, dense, tile, n, after);
    else if (last) grad_apply_last<how, residual, false>(x, from, dy, dx, dense, tile, n, after);
    else if (stream) grad_apply_middle<how, residual, true>(x, from, dy, dx, dense, tile, n, after);
    else grad_apply_middle<how, residual, false>(x, from, dy, dx, dense, tile, n, after);
  });
  if (stream) finish_streaming();
}

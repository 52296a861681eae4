// apply: z = (x - center) * scale + shift, two roundings after an exact difference and no fma, so that composed tensor
// operations give the same bits; then residual and activation, on the way.

template <class D>
struct Run {  // of one channel, or one row
  const D *x, *residual;
  D* y;
  Word<Computed<D>>* bits;
  int64_t length;
  bool in_place;  // y is x or the residual: no value may be read again once it is written
};

template <class D>
INLINE bool is_in_place(const D* x, const D* y, const After<D>& after) {
  return x == y || after.residual == y;
}

template <How how, bool residual, bool Stream, class D, class T>
INLINE void apply_run(Run<D> r, T center, T scale, T shift, const Called<T>& called) {
  using P = Pack<T>;
  const P c = P::of(center), a = P::of(scale), b = P::of(shift);
  const auto bits = [&](int64_t i) { return r.bits ? r.bits + i / P::size : nullptr; };
  const auto z_at = [&](int64_t i) {
    P z = (load(r.x + i) - c) * a + b;
    if constexpr (residual) z = z + load(r.residual + i);
    return z;
  };
  const auto few = [&](int64_t i) {  // less than a pack
    P z[1] = {(load_first(r.x + i, r.length - i) - c) * a + b};
    if constexpr (residual) z[0] = z[0] + load_first(r.residual + i, r.length - i);
    activate<how>(z, bits(i), called);
    store_first(z[0], r.y + i, r.length - i);
  };
  if (r.length < P::size) return few(0);
  const auto step = [&]<int n, bool past>(int64_t i, Word<T>* words) {
    P z[n];
    for (int k = 0; k < n; ++k) z[k] = z_at(i + k * P::size);
    activate<how>(z, words, called);
    put_all<past>(z, r.y + i);
  };
  int64_t i = 0;
  if constexpr (Stream) {  // one ordinary store, then from the next aligned address on
    step.template operator()<1, false>(0, bits(0));
    i = (kAligned<D> - reinterpret_cast<uintptr_t>(r.y) % kAligned<D>) % kAligned<D> / sizeof(D);
  }
  for (; i + 4 * P::size <= r.length; i += 4 * P::size) step.template operator()<4, Stream>(i, bits(i));
  for (; i + P::size <= r.length; i += P::size) step.template operator()<1, Stream>(i, bits(i));
  if (i == r.length) return;
  if (r.in_place) few(i);
  else step.template operator()<1, false>(r.length - P::size, bits(r.length - 1));
}

// Whether runs are worth streaming. The lines where unaligned ones begin and end are written by both kinds of stores, which
// is slow: short runs must be aligned. So must all with bits, whose packs are counted from the beginning of a run.
template <class D>
INLINE bool runs_can_stream(const D* y, Layout to, bool with_bits) {
  const int64_t bytes = to.inner * int64_t(sizeof(D));
  return (reinterpret_cast<uintptr_t>(y) % 64 == 0 && bytes % 64 == 0) || (!with_bits && bytes >= 16384);
}

template <How how, bool residual, bool Stream, class D, class T>
INLINE void apply_middle(const D* x, Layout from, D* y, Layout to, Tile tile, Numbers<T> n, After<D> after) {
  const Called<T> called(after.activation);
  const int64_t words = words_in(to.inner, sizeof(T));
  for (int64_t o = tile.o0; o < tile.o1; ++o)
    for (int64_t c = tile.c0; c < tile.c1; ++c) {
      const int64_t at = o * to.stride + c * to.inner + tile.i0;
      apply_run<how, residual, Stream>(
          Run<D>{x + o * from.stride + c * from.inner + tile.i0, residual ? after.residual + at : nullptr, y + at,
                 after.bits ? after.bits + (o * to.channels + c) * words + words_in(tile.i0, sizeof(T)) : nullptr,
                 tile.i1 - tile.i0, is_in_place(x, y, after)},
          n.center[c], n.scale[c], n.shift[c], called);
    }
}

template <How how, bool residual, bool Stream, class D, class T>
INLINE void apply_last(const D* x, Layout from, D* y, Layout to, Tile tile, Numbers<T> n, After<D> after) {
  using P = Pack<T>;
  const Called<T> called(after.activation);
  const Strip<T> strip{tile.c1 - tile.c0};
  const int64_t c = tile.c0, words = words_in(to.channels, sizeof(T));
  const Together together(strip, tile.o1 - tile.o0);
  for (int64_t group = 0; group < together.groups; ++group) {
    const int64_t first = tile.o0 + together.first(group), many = together.in(group);
    each_packs(strip, [&]<int packs, bool narrow>(int64_t p) {
      P center[packs], scale[packs], shift[packs];
      for (int j = 0; j < packs; ++j) {
        center[j] = strip.template load<narrow>(n.center + c, p + j);
        scale[j] = strip.template load<narrow>(n.scale + c, p + j);
        shift[j] = strip.template load<narrow>(n.shift + c, p + j);
      }
      for (int64_t k = 0; k < many; ++k) {
        const int64_t o = first + k * together.step;
        P z[packs];
        for (int j = 0; j < packs; ++j) {
          z[j] = (strip.template load<narrow>(x + o * from.stride + c, p + j) - center[j]) * scale[j] + shift[j];
          if constexpr (residual) z[j] = z[j] + strip.template load<narrow>(after.residual + o * to.stride + c, p + j);
        }
        activate<how>(z, after.bits ? after.bits + o * words + words_in(c, sizeof(T)) + p : nullptr, called);
        strip.template put_all<narrow, Stream>(z, y + o * to.stride + c, p);
      }
    });
  }
}

// Rows can be streamed where every pack of every row begins at an aligned address.
template <class D>
INLINE bool rows_are_aligned(const D* y, Layout to, Tile tile) {
  const auto aligned = [](int64_t bytes) { return bytes % kAligned<D> == 0; };
  return aligned(reinterpret_cast<int64_t>(y)) && aligned(to.stride * sizeof(D)) && aligned(tile.c0 * sizeof(D)) &&
         aligned((tile.c1 - tile.c0) * sizeof(D));
}

template <class D, class T>
void apply(const D* x, Layout from, D* y, Layout to, Tile tile, Numbers<T> n, After<D> after, bool stream) {
  const bool last = from.inner == 1;
  if (is_in_place(x, y, after)) {
    stream = false;
    // A last pack that does not fit would overlap the one before it.
    constexpr int64_t size = Pack<T>::size;
    const int64_t whole = tile.c0 + (tile.c1 - tile.c0) / size * size;
    if (last && tile.c0 < whole && whole < tile.c1) {
      Tile rest = tile;
      rest.c0 = tile.c1 = whole;
      apply(x, from, y, to, rest, n, after, false);
    }
  }
  if (last) stream = stream && rows_are_aligned(y, to, tile);
  else stream = stream && runs_can_stream(y, to, after.bits != nullptr);
  forward_kinds(after, [&]<How how, bool residual>() {
    if (last && stream) apply_last<how, residual, true>(x, from, y, to, tile, n, after);
    else if (last) apply_last<how, residual, false>(x, from, y, to, tile, n, after);
    else if (stream) apply_middle<how, residual, true>(x, from, y, to, tile, n, after);
    else apply_middle<how, residual, false>(x, from, y, to, tile, n, after);
  });
  if (stream) finish_streaming();
}

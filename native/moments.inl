// moments: per channel the sum and m2 = sum (x - mean)^2, in blocks small enough to stay in L1 or L2.
//
// A block is swept once: for its sum, and for the squares about a pivot, a T near the mean (the mean of what came before,
// or of a first few values). With x - pivot exact where it matters,
//
//     sum (x - mean)^2 = sum (x - pivot)^2 - n (mean - pivot)^2
//
// loses no more than a bit where the second term is at most half of the first. Where it is more, the block is swept again
// about its own mean. Blocks are merged by Chan's formula in double. Squares are added eight deep in T, then in double;
// values in double at once, but for half types: eight of those, of 8 or 11 bits each, add up in a float exactly unless one
// is thousands of times another.

constexpr int64_t kBlockBytes = 32768;  // of one channel, channels in the middle

// Moments of a growing range of one channel. Means are compared as distances from the first block's pivot: a difference
// of pivots is exact, a difference of quotients is not.
struct Merged {
  double count = 0, sum = 0, sum_tail = 0, m2 = 0, m2_tail = 0, pivot = 0, shift = 0;

  // A block of n values: its sum, its squares about `block_pivot`, and how far its mean is off that pivot.
  INLINE void merge(double n, double s, double s_tail, double squares, double block_pivot, double off) {
    if (count == 0) pivot = block_pivot;
    const double d = (block_pivot - pivot) + off - shift;
    if (count > 0) two_sum(m2, m2_tail, d * d * (count * n / (count + n)));
    two_sum(m2, m2_tail, squares - n * off * off);
    shift += d * (n / (count + n));
    two_sum(sum, sum_tail, s);
    sum_tail += s_tail;
    count += n;
  }
};

// Squares of floats far from 1 leave the range of float; they are then done again in double. `m2 == 0` may mean that.
INLINE bool out_of_range(double m2, double n) { return !(m2 >= n * 1e-34 && m2 <= 1e34); }

// True too where a sum is not a number.
INLINE bool cancels(double squares, double n, double off) { return !(n * off * off <= 0.5 * squares); }

// Sums about a pivot: of (x - pivot)^2, and for doubles of x - pivot. (For floats the double mean less the pivot says
// as much.)
template <class T>
struct AboutPivot {
  ExactSum<T> squares, differences;
  INLINE void add(Pack<T> d) {
    squares.add(widen(d * d));
    if constexpr (sizeof(T) == 8) differences.add(widen(d));
  }
  INLINE void add_wider(Pack<T> d) {
    Wide<T> w = widen(d);
    for (int k = 0; k < Wide<T>::parts; ++k) w.p[k] = w.p[k] * w.p[k];
    squares.add(w);
  }
  INLINE void add_eight(const Pack<T> (&d)[8]) {
    Pack<T> t[8];
    for (int k = 0; k < 8; ++k) t[k] = d[k] * d[k];
    squares.add(widen(tree(t)));
    if constexpr (sizeof(T) == 8) differences.add(widen(tree(d)));
  }
};

// A block of one channel: `runs` runs of `length` contiguous values, `stride` apart. The next one begins at `next`.
template <class D>
struct Block {
  const D* x;
  int64_t runs, length, stride;
  const D* next;
  double n() const { return double(runs * length); }
};

template <class D, class T>
INLINE void sweep(const Block<D>& b, T pivot, ExactSum<T>& even, ExactSum<T>& odd, AboutPivot<T>& about) {
  using P = Pack<T>;
  const P p = P::of(pivot);
  Eights<T> singles, squares, differences;
  const auto add_about = [&](P d) {
    squares.add(d * d, about.squares);
    if constexpr (sizeof(T) == 8) differences.add(d, about.differences);
  };
  const auto add = [&](P value, P d, const D* at) {
    if constexpr (kIsHalf<D>) singles.add(value, even);
    else even.add(load_wide(at));
    add_about(d);
  };
  for (int64_t r = 0; r < b.runs; ++r) {
    const D *run = b.x + r * b.stride, *next = b.next + r * b.stride;
    int64_t i = 0;
    for (; i + 8 * P::size <= b.length; i += 8 * P::size) {
      P d[8], values[8];
      for (int k = 0; k < 8; ++k) {
        const D* at = run + i + k * P::size;
        prefetch(next + i + k * P::size);
        if constexpr (kIsHalf<D>) values[k] = load(at);
        else (k % 2 ? odd : even).add(load_wide(at));
        d[k] = load(at) - p;
      }
      if constexpr (kIsHalf<D>) even.add(widen(tree(values)));
      about.add_eight(d);
    }
    for (; i + P::size <= b.length; i += P::size) {
      prefetch(next + i);
      add(load(run + i), load(run + i) - p, run + i);
    }
    if (i < b.length) {
      const P last = load_uncounted(run, b.length, pivot) - p;
      const P whole = load_uncounted(run, b.length, T(0));
      if constexpr (kIsHalf<D>) singles.add(whole, even);
      else odd.add(widen(whole));
      add_about(last);
    }
  }
  singles.flush(even);
  squares.flush(about.squares);
  if constexpr (sizeof(T) == 8) differences.flush(about.differences);
}

// The squares alone, once more. Wider: square in double.
template <bool Wider, class D, class T>
INLINE void sweep_again(const Block<D>& b, T pivot, AboutPivot<T>& about) {
  using P = Pack<T>;
  const P p = P::of(pivot);
  about = AboutPivot<T>{};
  for (int64_t r = 0; r < b.runs; ++r) {
    const D* run = b.x + r * b.stride;
    int64_t i = 0;
    for (; i + P::size <= b.length; i += P::size) {
      if constexpr (Wider) about.add_wider(load(run + i) - p);
      else about.add(load(run + i) - p);
    }
    if (i < b.length) {
      if constexpr (Wider) about.add_wider(load_uncounted(run, b.length, pivot) - p);
      else about.add(load_uncounted(run, b.length, pivot) - p);
    }
  }
}

template <class D>
INLINE void merge_block(const Block<D>& b, Merged& merged) {
  using T = Computed<D>;
  const double n = b.n();
  double pivot_of = merged.pivot + merged.shift;
  if (merged.count == 0) {
    const int64_t few = b.length < 16 ? b.length : 16;
    pivot_of = 0;
    for (int64_t i = 0; i < few; ++i) pivot_of += first_of(b.x + i);
    pivot_of /= double(few);
  }
  T pivot = T(pivot_of);
  ExactSum<T> even, odd;  // two, to hide the latency of addition
  AboutPivot<T> about;
  sweep(b, pivot, even, odd, about);

  double sum, tail, more, more_tail;
  even.total(sum, tail);
  odd.total(more, more_tail);
  two_sum(sum, tail, more);
  tail += more_tail;
  const double mean = (sum + tail) / n;
  const auto off_pivot = [&] { return sizeof(T) == 8 ? total(about.differences) / n : mean - double(pivot); };
  double squares = total(about.squares), off = off_pivot();
  if (cancels(squares, n, off)) {
    pivot = T(mean);
    sweep_again<false>(b, pivot, about);
    squares = total(about.squares);
    off = off_pivot();
  }
  if (sizeof(T) == 4 && out_of_range(squares, n)) {
    pivot = T(mean);
    sweep_again<true>(b, pivot, about);
    squares = total(about.squares);
    off = mean - double(pivot);
  }
  merged.merge(n, sum, tail, squares, double(pivot), off);
}

template <class D>
void moments_middle(const D* x, Layout at, Tile tile, Sums out) {
  constexpr int64_t block = kBlockBytes / sizeof(Computed<D>);
  const int64_t length = tile.i1 - tile.i0;
  for (int64_t c = tile.c0; c < tile.c1; ++c) {
    Merged merged;
    const D* channel = x + c * at.inner;
    if (length >= block) {
      const int64_t pieces = (length + block - 1) / block;
      const int64_t piece = ((length + pieces - 1) / pieces + 127) / 128 * 128;
      for (int64_t o = tile.o0; o < tile.o1; ++o)
        for (int64_t i = tile.i0; i < tile.i1; i += piece) {
          const D* from = channel + o * at.stride + i;
          const bool more = i + piece < tile.i1;
          const D* next = more ? from + piece : from - i + tile.i0 + at.stride;
          merge_block(Block<D>{from, 1, more ? piece : tile.i1 - i, 0, next}, merged);
        }
    } else {
      const int64_t runs = block / length;
      for (int64_t o = tile.o0; o < tile.o1; o += runs) {
        const D* from = channel + o * at.stride + tile.i0;
        const int64_t some = o + runs < tile.o1 ? runs : tile.o1 - o;
        merge_block(Block<D>{from, some, length, at.stride, from + runs * at.stride}, merged);
      }
    }
    out.first[c] = merged.sum;
    out.first_tail[c] = merged.sum_tail;
    out.second[c] = merged.m2;
    out.second_tail[c] = merged.m2_tail;
  }
}

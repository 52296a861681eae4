// moments: per channel the sum and m2 = sum (x - mean)^2, in blocks small enough to stay in L1 or L2.
//
// A block is swept once: for its sum, and for the squares about a pivot, a T near the mean (the mean of what came before,
// or of a first few values). With x - pivot exact where it matters,
//
//     sum (x - mean)^2 = sum (x - pivot)^2 - n (mean - pivot)^2
//
// loses no more than a bit where the second term is at most half of the first. Where it is more, the block is swept again
// about its own mean. Blocks are merged by Chan's formula in double. Squares are added eight deep in T, then in double.

constexpr int64_t kBlockBytes = 8192;  // of one channel, channels in the middle
constexpr int64_t kRowBlockBytes = 262144;  // of one strip, channels last

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
template <class T>
struct Block {
  const T* x;
  int64_t runs, length, stride;
  const T* next;
  double n() const { return double(runs * length); }
};

template <class T>
INLINE void sweep(const Block<T>& b, T pivot, ExactSum<T>& even, ExactSum<T>& odd, AboutPivot<T>& about) {
  using P = Pack<T>;
  const P p = P::of(pivot);
  for (int64_t r = 0; r < b.runs; ++r) {
    const T *run = b.x + r * b.stride, *next = b.next + r * b.stride;
    int64_t i = 0;
    for (; i + 8 * P::size <= b.length; i += 8 * P::size) {
      P d[8];
      for (int k = 0; k < 8; ++k) {
        const T* at = run + i + k * P::size;
        prefetch(next + i + k * P::size);
        (k % 2 ? odd : even).add(load_wide(at));
        d[k] = P::load(at) - p;
      }
      about.add_eight(d);
    }
    for (; i + P::size <= b.length; i += P::size) {
      prefetch(next + i);
      even.add(load_wide(run + i));
      about.add(P::load(run + i) - p);
    }
    if (i < b.length) {
      odd.add(widen(load_uncounted(run, b.length, T(0))));
      about.add(load_uncounted(run, b.length, pivot) - p);
    }
  }
}

// The squares alone, once more. Wider: square in double.
template <class T, bool Wider>
INLINE void sweep_again(const Block<T>& b, T pivot, AboutPivot<T>& about) {
  using P = Pack<T>;
  const P p = P::of(pivot);
  about = AboutPivot<T>{};
  for (int64_t r = 0; r < b.runs; ++r) {
    const T* run = b.x + r * b.stride;
    int64_t i = 0;
    for (; i + P::size <= b.length; i += P::size) {
      if constexpr (Wider) about.add_wider(P::load(run + i) - p);
      else about.add(P::load(run + i) - p);
    }
    if (i < b.length) {
      if constexpr (Wider) about.add_wider(load_uncounted(run, b.length, pivot) - p);
      else about.add(load_uncounted(run, b.length, pivot) - p);
    }
  }
}

template <class T>
INLINE void merge_block(const Block<T>& b, Merged& merged) {
  const double n = b.n();
  double pivot_of = merged.pivot + merged.shift;
  if (merged.count == 0) {
    const int64_t few = b.length < 64 ? b.length : 64;
    pivot_of = 0;
    for (int64_t i = 0; i < few; ++i) pivot_of += double(b.x[i]) / double(few);
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
    sweep_again<T, false>(b, pivot, about);
    squares = total(about.squares);
    off = off_pivot();
  }
  if (sizeof(T) == 4 && out_of_range(squares, n)) {
    pivot = T(mean);
    sweep_again<T, true>(b, pivot, about);
    squares = total(about.squares);
    off = mean - double(pivot);
  }
  merged.merge(n, sum, tail, squares, double(pivot), off);
}

template <class T>
void moments_middle(const T* x, Layout at, Tile tile, Sums out) {
  constexpr int64_t block = kBlockBytes / sizeof(T);
  const int64_t length = tile.i1 - tile.i0;
  for (int64_t c = tile.c0; c < tile.c1; ++c) {
    Merged merged;
    const T* channel = x + c * at.inner;
    if (length >= block) {
      const int64_t pieces = (length + block - 1) / block;
      const int64_t piece = ((length + pieces - 1) / pieces + 127) / 128 * 128;
      for (int64_t o = tile.o0; o < tile.o1; ++o)
        for (int64_t i = tile.i0; i < tile.i1; i += piece) {
          const T* from = channel + o * at.stride + i;
          const bool more = i + piece < tile.i1;
          const T* next = more ? from + piece : from - i + tile.i0 + at.stride;
          merge_block(Block<T>{from, 1, more ? piece : tile.i1 - i, 0, next}, merged);
        }
    } else {
      const int64_t runs = block / length;
      for (int64_t o = tile.o0; o < tile.o1; o += runs) {
        const T* from = channel + o * at.stride + tile.i0;
        const int64_t some = o + runs < tile.o1 ? runs : tile.o1 - o;
        merge_block(Block<T>{from, some, length, at.stride, from + runs * at.stride}, merged);
      }
    }
    out.first[c] = merged.sum;
    out.first_tail[c] = merged.sum_tail;
    out.second[c] = merged.m2;
    out.second_tail[c] = merged.m2_tail;
  }
}

// ---- channels last: a strip of columns ------------------------------------------------------------------------------

template <class T>
struct StripMoments {
  double sum[kLanes], sum_tail[kLanes], m2[kLanes], m2_tail[kLanes], pivot0[kLanes], shift[kLanes];  // as in Merged
  double block_sum[kLanes], block_tail[kLanes], block_squares[kLanes], block_differences[kLanes];
  double squares_tail[kLanes], differences_tail[kLanes];
  T pivot[kLanes];
};

template <class T>
INLINE void clear_about_pivot(StripMoments<T>& m, int64_t lanes) {
  for (int64_t k = 0; k < lanes; ++k)
    m.block_squares[k] = m.block_differences[k] = m.squares_tail[k] = m.differences_tail[k] = 0;
}
template <class T>
INLINE void take_tails(StripMoments<T>& m, int64_t lanes) {
  if constexpr (sizeof(T) == 8)
    for (int64_t k = 0; k < lanes; ++k) {
      m.block_squares[k] = total(m.block_squares[k], m.squares_tail[k]);
      m.block_differences[k] = total(m.block_differences[k], m.differences_tail[k]);
    }
}

template <class T>
INLINE void strip_sweep(const T* x, int64_t rows, int64_t stride, Strip<T> strip, StripMoments<T>& m) {
  using P = Pack<T>;
  for (int64_t k = 0; k < strip.packs() * P::size; ++k) m.block_sum[k] = m.block_tail[k] = 0;
  clear_about_pivot(m, strip.packs() * P::size);
  for (int64_t r = 0; r < rows; r += 8) {
    const int64_t some = rows - r < 8 ? rows - r : 8;
    each_packs(strip, [&]<int packs, bool narrow>(int64_t p) {
      ExactSum<T> sum[packs];
      P pivot[packs], squares[packs], differences[packs];
      for (int j = 0; j < packs; ++j) {
        sum[j].load(m.block_sum + (p + j) * P::size, m.block_tail + (p + j) * P::size);
        pivot[j] = P::load(m.pivot + (p + j) * P::size);
        squares[j] = differences[j] = P::zero();
      }
      for (int64_t k = 0; k < some; ++k)
        for (int j = 0; j < packs; ++j) {
          const T* row = x + (r + k) * stride;
          if constexpr (packs == 1 && !narrow) prefetch(row + 8 * stride + strip.column(p + j));  // eight rows are no long piece
          sum[j].add(strip.template load_wide<narrow>(row, p + j));
          const P d = strip.template load<narrow>(row, p + j) - pivot[j];
          squares[j] = squares[j] + d * d;
          if constexpr (sizeof(T) == 8) differences[j] = differences[j] + d;
        }
      for (int j = 0; j < packs; ++j) {
        sum[j].store(m.block_sum + (p + j) * P::size, m.block_tail + (p + j) * P::size);
        const int64_t at = (p + j) * P::size;
        add_to(m.block_squares + at, m.squares_tail + at, widen(squares[j]));
        if constexpr (sizeof(T) == 8) add_to(m.block_differences + at, m.differences_tail + at, widen(differences[j]));
      }
    });
  }
  take_tails(m, strip.packs() * P::size);
}

template <class T, bool Wider>
INLINE void strip_sweep_again(const T* x, int64_t rows, int64_t stride, Strip<T> strip, StripMoments<T>& m) {
  using P = Pack<T>;
  clear_about_pivot(m, strip.packs() * P::size);
  each_packs(strip, [&]<int packs, bool narrow>(int64_t p) {
    for (int j = 0; j < packs; ++j) {
      const P pivot = P::load(m.pivot + (p + j) * P::size);
      AboutPivot<T> about;
      for (int64_t r = 0; r < rows; ++r) {
        const P d = strip.template load<narrow>(x + r * stride, p + j) - pivot;
        if constexpr (Wider) about.add_wider(d);
        else about.add(d);
      }
      const int64_t at = (p + j) * P::size;
      about.squares.store(m.block_squares + at, m.squares_tail + at);
      if constexpr (sizeof(T) == 8) about.differences.store(m.block_differences + at, m.differences_tail + at);
    }
  });
  take_tails(m, strip.packs() * P::size);
}

// The mean of the first rows (of 32, so that hardly one column in a million has it off by a deviation), or of all that
// came before.
template <class T>
INLINE void strip_pivot(const T* x, int64_t rows, int64_t stride, Strip<T> strip, bool first, StripMoments<T>& m) {
  constexpr int size = Pack<T>::size;
  const int64_t lanes = strip.packs() * size, few = rows < 32 ? rows : 32;
  if (!first) {
    for (int64_t k = 0; k < lanes; ++k) m.pivot[k] = T(m.pivot0[k] + m.shift[k]);
    return;
  }
  each_packs(strip, [&]<int packs, bool narrow>(int64_t p) {
    Wide<T> sum[packs];
    for (int j = 0; j < packs; ++j) sum[j] = Wide<T>::zero();
    for (int64_t r = 0; r < few; ++r)
      for (int j = 0; j < packs; ++j) accumulate(sum[j], strip.template load_wide<narrow>(x + r * stride, p + j));
    for (int j = 0; j < packs; ++j) sum[j].store(m.pivot0 + (p + j) * size);
  });
  const double per_few = 1 / double(few);
  for (int64_t k = 0; k < lanes; ++k) m.pivot[k] = T(m.pivot0[k] * per_few);
}

// Whether a column must be swept again (`cancels`), or in double (`range`).
struct Again {
  bool cancels = false, range = false;
};

template <class T>
INLINE Again strip_again(const StripMoments<T>& m, int64_t used, double n) {
  Again again;
  const double per_n = 1 / n;
  for (int64_t k = 0; k < used; ++k) {
    const double pivot = double(m.pivot[k]), squares = m.block_squares[k];
    const double off = sizeof(T) == 8 ? m.block_differences[k] * per_n : m.block_sum[k] * per_n - pivot;
    again.cancels |= cancels(squares, n, off);
    // A column of one value is no reason: its squares are 0, and its sum n times that value, exactly.
    again.range |= sizeof(T) == 4 && out_of_range(squares, n) && !(squares == 0 && m.block_sum[k] == n * pivot);
  }
  return again;
}

// Merged::merge for every column of a strip.
template <class T>
INLINE void merge_strip(StripMoments<T>& m, int64_t lanes, double n, double before) {
  const double per_n = 1 / n, part = n / (before + n), weight = before * part;
  for (int64_t k = 0; k < lanes; ++k) {
    const double pivot = double(m.pivot[k]);
    const double off = sizeof(T) == 8 ? m.block_differences[k] * per_n : m.block_sum[k] * per_n - pivot;
    if (before == 0) m.pivot0[k] = pivot;
    const double d = (pivot - m.pivot0[k]) + off - m.shift[k];
    two_sum(m.m2[k], m.m2_tail[k], (m.block_squares[k] - n * off * off) + d * d * weight);
    m.shift[k] += d * part;
    two_sum(m.sum[k], m.sum_tail[k], m.block_sum[k]);
    m.sum_tail[k] += m.block_tail[k];
  }
}

template <class T>
void moments_last(const T* x, Layout at, Tile tile, Sums out) {
  const Strip<T> strip{tile.c1 - tile.c0};
  const int64_t lanes = strip.packs() * Pack<T>::size, used = strip.narrow() ? strip.width : lanes;
  const int64_t fitting = kRowBlockBytes / int64_t(sizeof(T)) / lanes / 8 * 8;
  const int64_t block = fitting < 16 ? 16 : fitting;
  StripMoments<T> m;
  for (int64_t k = 0; k < lanes; ++k) m.sum[k] = m.sum_tail[k] = m.m2[k] = m.m2_tail[k] = m.shift[k] = 0;

  for (int64_t o = tile.o0; o < tile.o1; o += block) {
    const int64_t rows = o + block < tile.o1 ? block : tile.o1 - o;
    const double n = double(rows);
    const T* from = x + o * at.stride + tile.c0;
    strip_pivot(from, rows, at.stride, strip, o == tile.o0, m);
    strip_sweep(from, rows, at.stride, strip, m);
    Again again = strip_again(m, used, n);
    if (again.cancels || again.range) {
      for (int64_t k = 0; k < lanes; ++k) m.pivot[k] = T((m.block_sum[k] + m.block_tail[k]) / n);
      if (!again.range) strip_sweep_again<T, false>(from, rows, at.stride, strip, m);
      if (again.range || strip_again(m, used, n).range) strip_sweep_again<T, true>(from, rows, at.stride, strip, m);
    }
    merge_strip(m, lanes, n, double(o - tile.o0));
  }
  strip.spread(m.sum, out.first + tile.c0);
  strip.spread(m.sum_tail, out.first_tail + tile.c0);
  strip.spread(m.m2, out.second + tile.c0);
  strip.spread(m.m2_tail, out.second_tail + tile.c0);
}

template <class T>
void moments(const T* x, Layout at, Tile tile, Sums out) {
  if (at.inner == 1) moments_last(x, at, tile, out);
  else moments_middle(x, at, tile, out);
}

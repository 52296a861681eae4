// moments: per channel the sum and m2 = sum (x - mean)^2, in blocks small enough to stay in L1.
//
// Each block is swept twice: once for its sum, once for the squares about its mean rounded to T ("pivot"). With
// x - pivot exact where it matters, sum (x - mean)^2 = sum (x - pivot)^2 - n (mean - pivot)^2 without cancellation.
// Blocks are merged by Chan's formula in double. Squares are added eight deep in T, then in double, so the longest chain
// of T roundings is three.

constexpr int64_t kBlockBytes = 8192;       // of one channel, channels in the middle
constexpr int64_t kRowBlockBytes = 65536;   // of one strip, channels last

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

// Sums about a pivot: of (x - pivot)^2, and for doubles of x - pivot. (For floats the double mean less the pivot says
// as much.)
template <class T>
struct AboutPivot {
  Wide<T> squares = Wide<T>::zero(), differences = Wide<T>::zero();
  INLINE void add(Pack<T> d) {
    accumulate(squares, widen(d * d));
    if constexpr (sizeof(T) == 8) accumulate(differences, widen(d));
  }
  INLINE void add_wider(Pack<T> d) {
    Wide<T> w = widen(d);
    for (int k = 0; k < Wide<T>::parts; ++k) w.p[k] = w.p[k] * w.p[k];
    accumulate(squares, w);
  }
  INLINE void add_eight(const Pack<T> (&d)[8]) {
    Pack<T> t[8];
    for (int k = 0; k < 8; ++k) t[k] = d[k] * d[k];
    accumulate(squares, widen(tree(t)));
    if constexpr (sizeof(T) == 8) accumulate(differences, widen(tree(d)));
  }
};

// Adds one run. Wider: square in double. The run is in cache and memory idle: what comes `next` is fetched meanwhile.
template <class T, bool Wider>
INLINE void add_about_pivot(const T* run, int64_t length, T pivot, AboutPivot<T>& sums, const T* next) {
  using P = Pack<T>;
  const P p = P::of(pivot);
  int64_t i = 0;
  if constexpr (Wider) {
    for (; i + P::size <= length; i += P::size) sums.add_wider(P::load(run + i) - p);
    if (i < length) sums.add_wider(load_uncounted(run, length, pivot) - p);
  } else {
    for (; i + 8 * P::size <= length; i += 8 * P::size) {
      P d[8];
      for (int k = 0; k < 8; ++k) {
        prefetch(next + i + k * P::size);
        d[k] = P::load(run + i + k * P::size) - p;
      }
      sums.add_eight(d);
    }
    for (; i + P::size <= length; i += P::size) {
      prefetch(next + i);
      sums.add(P::load(run + i) - p);
    }
    if (i < length) sums.add(load_uncounted(run, length, pivot) - p);
  }
}

// One block of one channel: `runs` runs of `length` contiguous values, `stride` apart; the next block begins at `next`.
template <class T>
INLINE void merge_block(const T* x, int64_t runs, int64_t length, int64_t stride, Merged& merged, const T* next) {
  using P = Pack<T>;
  ExactSum<T> even, odd;  // two, to hide the latency of addition
  for (int64_t r = 0; r < runs; ++r) {
    const T* run = x + r * stride;
    int64_t i = 0;
    for (; i + 2 * P::size <= length; i += 2 * P::size) {
      even.add(load_wide(run + i));
      odd.add(load_wide(run + i + P::size));
    }
    for (; i + P::size <= length; i += P::size) even.add(load_wide(run + i));
    if (i < length) odd.add(widen(load_uncounted(run, length, T(0))));
  }
  double sum, tail, more, more_tail;
  even.total(sum, tail);
  odd.total(more, more_tail);
  two_sum(sum, tail, more);
  tail += more_tail;

  const double n = double(runs * length);
  const double mean = (sum + tail) / n;
  const T pivot = T(mean);
  AboutPivot<T> sums;
  for (int64_t r = 0; r < runs; ++r) add_about_pivot<T, false>(x + r * stride, length, pivot, sums, next + r * stride);
  double squares = sum_of_lanes(sums.squares);
  double off = sum_of_lanes(sums.differences) / n;
  if constexpr (sizeof(T) == 4) {
    if (out_of_range(squares, n)) {
      sums = AboutPivot<T>{};
      for (int64_t r = 0; r < runs; ++r) add_about_pivot<T, true>(x + r * stride, length, pivot, sums, next);
      squares = sum_of_lanes(sums.squares);
    }
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
          merge_block(from, 1, more ? piece : tile.i1 - i, 0, merged, more ? from + piece : from - i + tile.i0 + at.stride);
        }
    } else {
      const int64_t runs = block / length;
      for (int64_t o = tile.o0; o < tile.o1; o += runs) {
        const T* from = channel + o * at.stride + tile.i0;
        merge_block(from, o + runs < tile.o1 ? runs : tile.o1 - o, length, at.stride, merged, from + runs * at.stride);
      }
    }
    out.first[c] = merged.sum;
    out.first_tail[c] = merged.sum_tail;
    out.second[c] = merged.m2;
    out.second_tail[c] = merged.m2_tail;
  }
}

// ---- channels last: a strip of columns ------------------------------------------------------------------------------

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
    return c + size <= width || narrow() ? c : width - size;
  }
  INLINE Pack<T> load(const T* row, int64_t pack) const {
    return narrow() ? Pack<T>::load_first(row, width, T(0)) : Pack<T>::load(row + column(pack));
  }
  INLINE Wide<T> load_wide(const T* row, int64_t pack) const {
    return narrow() ? widen(Pack<T>::load_first(row, width, T(0))) : ::normwright::NORMWRIGHT_ISA::load_wide(row + column(pack));
  }
  // From accumulators, indexed by pack, to an array indexed by column.
  INLINE void put(const double* accumulated, double* out) const {
    for (int64_t p = 0; p < packs(); ++p)
      for (int k = 0; k < size && k < width; ++k) out[column(p) + k] = accumulated[p * size + k];
  }
};

constexpr int64_t kLanes = kStrip + 16;

template <class T>
struct StripMoments {
  double sum[kLanes], sum_tail[kLanes], m2[kLanes], m2_tail[kLanes], pivot0[kLanes], shift[kLanes];  // as in Merged
  double block_sum[kLanes], block_tail[kLanes], block_squares[kLanes], block_differences[kLanes];
  T pivot[kLanes];
};

template <class T>
INLINE void block_sums(const T* x, int64_t rows, int64_t stride, Strip<T> strip, StripMoments<T>& m) {
  constexpr int size = Pack<T>::size;
  for (int64_t k = 0; k < strip.packs() * size; ++k) m.block_sum[k] = m.block_tail[k] = 0;
  for (int64_t r = 0; r < rows; r += 8) {
    const int64_t some = rows - r < 8 ? rows - r : 8;
    for (int64_t p = 0; p < strip.packs(); ++p) {
      ExactSum<T> sum;
      if constexpr (sizeof(T) == 4) sum.sum = Wide<T>::load(m.block_sum + p * size);
      else sum.sum = Pack<T>::load(m.block_sum + p * size), sum.tails = Pack<T>::load(m.block_tail + p * size);
      if (some == 8 && !strip.narrow()) {
        const T* at = x + r * stride + strip.column(p);
        for (int k = 0; k < 8; ++k) sum.add(load_wide(at + k * stride));
      } else {
        for (int64_t k = 0; k < some; ++k) sum.add(strip.load_wide(x + (r + k) * stride, p));
      }
      if constexpr (sizeof(T) == 4) sum.sum.store(m.block_sum + p * size);
      else sum.sum.store(m.block_sum + p * size), sum.tails.store(m.block_tail + p * size);
    }
  }
}

template <class T, bool Wider>
INLINE void block_about_pivot(const T* x, int64_t rows, int64_t stride, Strip<T> strip, StripMoments<T>& m) {
  using P = Pack<T>;
  for (int64_t k = 0; k < strip.packs() * P::size; ++k) m.block_squares[k] = m.block_differences[k] = 0;
  for (int64_t r = 0; r < rows; r += 8) {
    const int64_t some = rows - r < 8 ? rows - r : 8;
    for (int64_t p = 0; p < strip.packs(); ++p) {
      AboutPivot<T> sums;
      sums.squares = Wide<T>::load(m.block_squares + p * P::size);
      if constexpr (sizeof(T) == 8) sums.differences = Wide<T>::load(m.block_differences + p * P::size);
      const P pivot = P::load(m.pivot + p * P::size);
      if (some == 8 && !strip.narrow() && !Wider) {
        const T* at = x + r * stride + strip.column(p);
        P d[8];
        for (int k = 0; k < 8; ++k) {
          prefetch(at + (rows + k) * stride);  // the same place in the next block
          d[k] = P::load(at + k * stride) - pivot;
        }
        sums.add_eight(d);
      } else {
        for (int64_t k = 0; k < some; ++k) {
          const P d = strip.load(x + (r + k) * stride, p) - pivot;
          if constexpr (Wider) sums.add_wider(d);
          else sums.add(d);
        }
      }
      sums.squares.store(m.block_squares + p * P::size);
      if constexpr (sizeof(T) == 8) sums.differences.store(m.block_differences + p * P::size);
    }
  }
}

// A column of one value is no reason to square in double: its squares are 0, and its sum n times that value, exactly.
template <class T>
INLINE bool any_out_of_range(const StripMoments<T>& m, int64_t used, double n) {
  bool any = false;
  for (int64_t k = 0; k < used; ++k) {
    const bool constant = m.block_squares[k] == 0 && m.block_sum[k] == n * double(m.pivot[k]);
    any |= out_of_range(m.block_squares[k], n) && !constant;
  }
  return any;
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
  const int64_t lanes = strip.packs() * Pack<T>::size;
  const int64_t fitting = kRowBlockBytes / int64_t(sizeof(T)) / lanes / 8 * 8;
  const int64_t block = fitting < 16 ? 16 : fitting;
  StripMoments<T> m;
  for (int64_t k = 0; k < lanes; ++k) m.sum[k] = m.sum_tail[k] = m.m2[k] = m.m2_tail[k] = m.shift[k] = 0;

  for (int64_t o = tile.o0; o < tile.o1; o += block) {
    const int64_t rows = o + block < tile.o1 ? block : tile.o1 - o;
    const double n = double(rows);
    const T* from = x + o * at.stride + tile.c0;
    block_sums(from, rows, at.stride, strip, m);
    for (int64_t k = 0; k < lanes; ++k) m.pivot[k] = T((m.block_sum[k] + m.block_tail[k]) * (1 / n));
    block_about_pivot<T, false>(from, rows, at.stride, strip, m);
    if constexpr (sizeof(T) == 4) {
      if (any_out_of_range(m, strip.narrow() ? strip.width : lanes, n))
        block_about_pivot<T, true>(from, rows, at.stride, strip, m);
    }
    merge_strip(m, lanes, n, double(o - tile.o0));
  }
  strip.put(m.sum, out.first + tile.c0);
  strip.put(m.sum_tail, out.first_tail + tile.c0);
  strip.put(m.m2, out.second + tile.c0);
  strip.put(m.m2_tail, out.second_tail + tile.c0);
}

template <class T>
void moments(const T* x, Layout at, Tile tile, Sums out) {
  if (at.inner == 1) moments_last(x, at, tile, out);
  else moments_middle(x, at, tile, out);
}

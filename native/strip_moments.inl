// moments, channels last: as in moments.inl, for all columns of a strip at once.

constexpr int64_t kRowBlockBytes = 262144;  // of one strip
constexpr int64_t kFewRows = 64;

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

template <class D, class T>
INLINE void strip_sweep(const D* x, int64_t rows, int64_t stride, Strip<T> strip, StripMoments<T>& m) {
  using P = Pack<T>;
  for (int64_t k = 0; k < strip.packs() * P::size; ++k) m.block_sum[k] = m.block_tail[k] = 0;
  clear_about_pivot(m, strip.packs() * P::size);
  for (int64_t r = 0; r < rows; r += 8) {
    const int64_t some = rows - r < 8 ? rows - r : 8;
    each_packs(strip, [&]<int packs, bool narrow>(int64_t p) {
      ExactSum<T> sum[packs];
      P pivot[packs], squares[packs], differences[packs], values[packs];
      for (int j = 0; j < packs; ++j) {
        sum[j].load(m.block_sum + (p + j) * P::size, m.block_tail + (p + j) * P::size);
        pivot[j] = P::load(m.pivot + (p + j) * P::size);
        squares[j] = differences[j] = values[j] = P::zero();
      }
      strip.template foresee<packs>(x + r * stride, stride, p);
      for (int64_t k = 0; k < some; ++k)
        for (int j = 0; j < packs; ++j) {
          const D* row = x + (r + k) * stride;
          if constexpr (kIsHalf<D>) values[j] = values[j] + strip.template load<narrow>(row, p + j);
          else sum[j].add(strip.template load_wide<narrow>(row, p + j));
          const P d = strip.template load<narrow>(row, p + j) - pivot[j];
          squares[j] = squares[j] + d * d;
          if constexpr (sizeof(T) == 8) differences[j] = differences[j] + d;
        }
      for (int j = 0; j < packs; ++j) {
        if constexpr (kIsHalf<D>) sum[j].add(widen(values[j]));
        sum[j].store(m.block_sum + (p + j) * P::size, m.block_tail + (p + j) * P::size);
        const int64_t at = (p + j) * P::size;
        add_to(m.block_squares + at, m.squares_tail + at, widen(squares[j]));
        if constexpr (sizeof(T) == 8) add_to(m.block_differences + at, m.differences_tail + at, widen(differences[j]));
      }
    });
  }
  take_tails(m, strip.packs() * P::size);
}

template <class D, bool Wider, class T>
INLINE void strip_sweep_again(const D* x, int64_t rows, int64_t stride, Strip<T> strip, StripMoments<T>& m) {
  using P = Pack<T>;
  clear_about_pivot(m, strip.packs() * P::size);
  each_packs(strip, [&]<int packs, bool narrow>(int64_t p) {
    for (int j = 0; j < packs; ++j) {
      const P pivot = P::load(m.pivot + (p + j) * P::size);
      AboutPivot<T> about;
      Eights<T> squares, differences;
      for (int64_t r = 0; r < rows; ++r) {
        const P d = strip.template load<narrow>(x + r * stride, p + j) - pivot;
        if constexpr (Wider) {
          about.add_wider(d);
        } else {
          squares.add(d * d, about.squares);
          if constexpr (sizeof(T) == 8) differences.add(d, about.differences);
        }
      }
      squares.flush(about.squares);
      differences.flush(about.differences);
      const int64_t at = (p + j) * P::size;
      about.squares.store(m.block_squares + at, m.squares_tail + at);
      if constexpr (sizeof(T) == 8) about.differences.store(m.block_differences + at, m.differences_tail + at);
    }
  });
  take_tails(m, strip.packs() * P::size);
}

// The sums alone, of few rows.
template <class D, class T>
INLINE void strip_sums(const D* x, int64_t rows, int64_t stride, Strip<T> strip, StripMoments<T>& m) {
  each_packs(strip, [&]<int packs, bool narrow>(int64_t p) {
    ExactSum<T> sum[packs];
    for (int64_t r = 0; r < rows; ++r)
      for (int j = 0; j < packs; ++j) sum[j].add(strip.template load_wide<narrow>(x + r * stride, p + j));
    for (int j = 0; j < packs; ++j)
      sum[j].store(m.block_sum + (p + j) * Pack<T>::size, m.block_tail + (p + j) * Pack<T>::size);
  });
}

// The mean of all that came before, or of the first rows: of 16, so that hardly one column in ten thousand has it off by a
// deviation.
template <class D, class T>
INLINE void strip_pivot(const D* x, int64_t rows, int64_t stride, Strip<T> strip, bool first, StripMoments<T>& m) {
  constexpr int size = Pack<T>::size;
  const int64_t lanes = strip.packs() * size, few = rows < 16 ? rows : 16;
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

template <class D>
void moments_last(const D* x, Layout at, Tile tile, Sums out) {
  using T = Computed<D>;
  const Strip<T> strip{tile.c1 - tile.c0};
  const int64_t lanes = strip.packs() * Pack<T>::size, used = strip.narrow() ? strip.width : lanes;
  const int64_t fitting = kRowBlockBytes / int64_t(sizeof(T)) / lanes / 8 * 8;
  const int64_t block = fitting < 128 ? 128 : fitting;
  StripMoments<T> m;
  for (int64_t k = 0; k < lanes; ++k) m.sum[k] = m.sum_tail[k] = m.m2[k] = m.m2_tail[k] = m.shift[k] = 0;

  for (int64_t o = tile.o0; o < tile.o1; o += block) {
    const int64_t rows = o + block < tile.o1 ? block : tile.o1 - o;
    const double n = double(rows);
    const D* from = x + o * at.stride + tile.c0;
    const auto about_the_mean = [&] {
      for (int64_t k = 0; k < lanes; ++k) m.pivot[k] = T((m.block_sum[k] + m.block_tail[k]) / n);
    };
    bool again;
    if (o == tile.o0 && rows <= kFewRows) {  // as cheap as to look for a pivot
      for (int64_t k = 0; k < lanes; ++k) m.block_tail[k] = 0;
      strip_sums(from, rows, at.stride, strip, m);
      again = true;
    } else {
      strip_pivot(from, rows, at.stride, strip, o == tile.o0, m);
      strip_sweep(from, rows, at.stride, strip, m);
      const Again found = strip_again(m, used, n);
      again = found.cancels || found.range;
    }
    if (again) {
      about_the_mean();
      strip_sweep_again<D, false>(from, rows, at.stride, strip, m);
      if (strip_again(m, used, n).range) strip_sweep_again<D, true>(from, rows, at.stride, strip, m);
    }
    merge_strip(m, lanes, n, double(o - tile.o0));
  }
  strip.spread(m.sum, out.first + tile.c0);
  strip.spread(m.sum_tail, out.first_tail + tile.c0);
  strip.spread(m.m2, out.second + tile.c0);
  strip.spread(m.m2_tail, out.second_tail + tile.c0);
}

template <class D>
void moments(const D* x, Layout at, Tile tile, Sums out) {
  if (at.inner == 1) moments_last(x, at, tile, out);
  else moments_middle(x, at, tile, out);
}

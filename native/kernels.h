// The four kernels' shapes and signatures. Kernels know pointers and sizes; they do not know threads, Python or memory.
#pragma once

#include <cstdint>

namespace normwright {

// Any input, seen as (outer, channels, inner). The last two axes are dense; `stride` elements lie between outer slices.
// inner == 1 is "channels last" (and plain (N, C)); inner > 1 is "channels in the middle".
struct Layout {
  int64_t outer, channels, inner, stride;
  int64_t count() const { return outer * inner; }
};

// The part of a layout that one kernel call works on: channels [c0, c1), outer slices [o0, o1), inner [i0, i1).
// With channels last at most `kStrip` channels wide.
struct Tile {
  int64_t c0, c1, o0, o1, i0, i1;
  int64_t count() const { return (o1 - o0) * (i1 - i0); }
};

constexpr int64_t kStrip = 512;

// Two sums per channel, each held as value + tail, the tail being what the value's rounding lost.
// moments: first = sum x, second = m2 about the tile's own mean.  grad_sums: first = sum dz,
// second = sum dz * (x - center) * rstd.
// The pointers are indexed by channel.
struct Sums {
  double *first, *first_tail, *second, *second_tail;
};

// The sums of one part of the data, and how many values of a channel it holds.
struct Part {
  Sums sums;
  double count;
};

// Per-channel numbers, in the data's type, indexed by channel.
//   apply        y = (x - center) * scale + shift
//   grad_sums    x_hat, but for what the center misses of the mean: (x - center) * rstd
//   grad_apply   dx = scale * (dz + ((x - center) * slope + level))
template <class T>
struct ApplyNumbers {
  const T *center, *scale, *shift;
};
template <class T>
struct XHatNumbers {
  const T *center, *rstd;
};
template <class T>
struct GradNumbers {
  const T *center, *scale, *slope, *level;
};

// One table per instruction set. `stream`: write the output past the caches.
// y, dy and dx are dense: `dense` is their layout, whose stride is channels * inner.
template <class T>
struct Kernels {
  void (*moments)(const T* x, Layout, Tile, Sums);
  void (*apply)(const T* x, Layout, T* y, Layout dense, Tile, ApplyNumbers<T>, bool stream);
  void (*grad_sums)(const T* x, Layout, const T* dy, Layout dense, Tile, XHatNumbers<T>, Sums);
  void (*grad_apply)(const T* x, Layout, const T* dy, T* dx, Layout dense, Tile, GradNumbers<T>, bool stream);
  // The memory floor's two loops, b = a and c = a + b, over n values.
  void (*copy)(const T* a, T* b, int64_t n, bool stream);
  void (*triad)(const T* a, const T* b, T* c, int64_t n, bool stream);
};

struct Isa {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
  // The sums of n parts as the sums of the whole, for channels [c0, c1): of moments (Chan), and of plain sums.
  void (*merge_moments)(const Part* parts, int64_t n, Sums whole, int64_t c0, int64_t c1);
  void (*merge_sums)(const Part* parts, int64_t n, Sums whole, int64_t c0, int64_t c1);
  template <class T>
  const Kernels<T>& kernels() const {
    if constexpr (sizeof(T) == 4) return f32;
    else return f64;
  }
};

// dispatch.cpp
const Isa& active_isa();
int isa_count();                        // the sets that this machine can run
const Isa& isa_at(int);                 // from the plainest to the widest
bool force_isa(const char* name);       // false: this machine cannot run it
int64_t last_level_cache_bytes();

}  // namespace normwright

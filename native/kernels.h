// The four kernels' shapes and signatures. Kernels know pointers and sizes; they do not know threads, Python or memory.
#pragma once

#include <cstdint>

namespace normwright {

// Half types as they lie in memory. They are computed as floats, and rounded once.
struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

// The type D is computed in.
template <class D> struct ComputedIn { using type = float; };
template <> struct ComputedIn<double> { using type = double; };
template <class D> using Computed = typename ComputedIn<D>::type;

enum class Dtype { f32, f64, bf16, f16 };

// Any input, seen as (outer, channels, inner). The last two axes are dense; `stride` elements lie between outer slices.
// inner == 1 is "channels last" (and plain (N, C)); inner > 1 is "channels in the middle".
struct Layout {
  int64_t outer, channels, inner, stride;
  int64_t count() const { return outer * inner; }
};

// The part of a layout that one kernel call works on: channels [c0, c1), outer slices [o0, o1), inner [i0, i1).
// With channels last at most `kStrip` channels wide; i0 is a multiple of 16, c0 with channels last too.
struct Tile {
  int64_t c0, c1, o0, o1, i0, i1;
  int64_t count() const { return (o1 - o0) * (i1 - i0); }
};

constexpr int64_t kStrip = 2048;

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

// Per-channel numbers, in the type that is computed in, indexed by channel.
//   apply        z = (x - center) * scale + shift
//   grad_sums    x_hat, but for what the center misses of the mean: (x - center) * rstd
//   grad_apply   dx = scale * (dz + ((x - center) * slope + level))
template <class T>
struct Numbers {
  const T *center, *scale, *shift, *rstd, *slope, *level;
};

// What follows z, in the order of KINDS in core/activation.py.
enum class Kind { identity, relu, leaky_relu, hardtanh, hardswish, silu, gelu, gelu_tanh, sigmoid, tanh, elu };
constexpr int kKinds = 11;
struct Activation {
  Kind kind = Kind::identity;
  double a = 0, b = 0;
  // One bit of z says what the derivative is.
  bool is_told_by_a_bit() const { return kind == Kind::relu || kind == Kind::leaky_relu || kind == Kind::hardtanh; }
};

// Bits: a word for each pack of the data, 64 bytes of what is computed in: 16 floats, 8 doubles. Every run of `inner`
// values, with channels last every row, begins a new word; so does a tile. A last pack that does not fit overlaps the one
// before it, and so do their words: lanes are counted from the pack's own first value. Who reads bits must cut runs into
// packs as apply did.
template <class T> struct WordOf { using type = uint16_t; };
template <> struct WordOf<double> { using type = uint8_t; };
template <class T> using Word = typename WordOf<T>::type;
inline int64_t words_in(int64_t length, int64_t bytes) { return (length * bytes + 63) / 64; }

// What comes after normalization. residual and dresidual are dense, as y and dx; null where there is none.
// bits: apply writes them, the gradients read them instead of z; null where there are none.
template <class D>
struct After {
  const D* residual;
  Word<Computed<D>>* bits;
  D* dresidual;
  Activation activation;
};

// One table per instruction set. `stream`: write the output past the caches.
// y, dy and dx are dense: `dense` is their layout, whose stride is channels * inner.
template <class D>
struct Kernels {
  using T = Computed<D>;
  void (*moments)(const D* x, Layout, Tile, Sums);
  void (*apply)(const D* x, Layout, D* y, Layout dense, Tile, Numbers<T>, After<D>, bool stream);
  void (*grad_sums)(const D* x, Layout, const D* dy, Layout dense, Tile, Numbers<T>, After<D>, Sums);
  void (*grad_apply)(const D* x, Layout, const D* dy, D* dx, Layout dense, Tile, Numbers<T>, After<D>, bool stream);
};

// Activations, over n packs of 64 bytes, in place: z becomes activation(z); dy becomes dy * activation'(z).
template <class T>
struct Activations {
  void (*value[kKinds])(T* z, int64_t packs, T a, T b);
  void (*gradient[kKinds])(const T* z, T* dy, int64_t packs, T a, T b);
};

// What a gap knows of channels, and makes of it. All pointers at the first of the channels meant.
struct Statistics {  // mean + mean_tail is the mean to more digits than one double
  double *mean, *mean_tail, *m2, *rstd;
};
struct Terms {
  double *gamma, *beta;    // given
  double* missing;         // what the center, the mean in T, misses of it
  double *dgamma, *dbeta;
};
template <class T>
struct MutableNumbers {
  T *center, *scale, *shift, *rstd, *slope, *level;
};
template <class T>
struct Gaps {
  // center, scale, shift, rstd and missing, from the statistics and gamma, beta.
  void (*forward)(Statistics, Terms, int64_t channels, MutableNumbers<T>);
  // dgamma, dbeta, slope and level, from sums over n values.
  void (*backward)(Sums, Statistics, Terms, double n, int64_t channels, MutableNumbers<T>);
};

struct Isa {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
  Kernels<bf16> b16;
  Kernels<f16> h16;
  // The memory floor's loops, c = a; c = a + b; c = a + b and d = a - b, over n values.
  void (*copy)(const float* a, float* c, int64_t n, bool stream);
  void (*triad)(const float* a, const float* b, float* c, int64_t n, bool stream);
  void (*quad)(const float* a, const float* b, float* c, float* d, int64_t n, bool stream);
  // The sums of n parts as the sums of the whole, for channels [c0, c1): of moments (Chan), and of plain sums.
  void (*merge_moments)(const Part* parts, int64_t n, Sums whole, int64_t c0, int64_t c1);
  void (*merge_sums)(const Part* parts, int64_t n, Sums whole, int64_t c0, int64_t c1);
  // The statistics from such sums over n values.
  void (*statistics)(Sums, double n, double eps, int64_t channels, Statistics);
  Gaps<float> gaps_f32;
  Gaps<double> gaps_f64;
};

template <class D> const Kernels<D>& kernels_of(const Isa&);
template <> inline const Kernels<float>& kernels_of(const Isa& isa) { return isa.f32; }
template <> inline const Kernels<double>& kernels_of(const Isa& isa) { return isa.f64; }
template <> inline const Kernels<bf16>& kernels_of(const Isa& isa) { return isa.b16; }
template <> inline const Kernels<f16>& kernels_of(const Isa& isa) { return isa.h16; }

template <class T> const Gaps<T>& gaps_of(const Isa&);
template <> inline const Gaps<float>& gaps_of(const Isa& isa) { return isa.gaps_f32; }
template <> inline const Gaps<double>& gaps_of(const Isa& isa) { return isa.gaps_f64; }

// dispatch.cpp
const Isa& active_isa();
int isa_count();                        // the sets that this machine can run
const Isa& isa_at(int);                 // from the plainest to the widest
bool force_isa(const char* name);       // false: this machine cannot run it
int64_t last_level_cache_bytes();
int64_t core_cache_bytes();             // of the largest cache that a core has for itself

}  // namespace normwright

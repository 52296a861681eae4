// The schedules: kernels put together over threads, with the per-channel arithmetic in the gaps.
#pragma once

#include <algorithm>

#include "kernels.h"

namespace normwright {

// Per-channel numbers from outside, float or double.
struct Reals {
  const void* data;  // may be null: then every value is `otherwise`
  bool is_double;
  double otherwise;
  double operator[](int64_t c) const {
    if (!data) return otherwise;
    return is_double ? static_cast<const double*>(data)[c] : double(static_cast<const float*>(data)[c]);
  }
  void read(int64_t c0, int64_t c1, double* to) const {
    if (!data) std::fill(to + c0, to + c1, otherwise);
    else if (is_double) std::copy(static_cast<const double*>(data) + c0, static_cast<const double*>(data) + c1, to + c0);
    else std::copy(static_cast<const float*>(data) + c0, static_cast<const float*>(data) + c1, to + c0);
  }
};
struct MutableReals {
  void* data;  // may be null: then nothing is written
  bool is_double;
  void set(int64_t c, double value) const {
    if (!data) return;
    if (is_double) static_cast<double*>(data)[c] = value;
    else static_cast<float*>(data)[c] = float(value);
  }
  void write(int64_t c0, int64_t c1, const double* from) const {
    if (!data) return;
    if (is_double) std::copy(from + c0, from + c1, static_cast<double*>(data) + c0);
    else std::transform(from + c0, from + c1, static_cast<float*>(data) + c0, [](double value) { return float(value); });
  }
};

// gamma and beta; none is 1 and 0.
struct Affine {
  Reals gamma, beta;
};

// What forward leaves for backward: four rows of C doubles.
using Saved = Statistics;

// Statistics that do not depend on x.
struct Fixed {
  Reals mean, var;
  double eps;
};

// running <- (1 - rate) * running + rate * batch. Null pointers: nothing is remembered.
struct Running {
  MutableReals mean, var;
  int64_t* counter;  // batches so far; may be null
  double rate;       // weight of the new batch; of the k-th batch it is 1/k where cumulative
  bool cumulative;
  bool guarded;      // a batch whose statistics are not finite is left out, all of it
  bool biased;       // var is m2 / n, not m2 / (n - 1)
};

// Where gradients go; null where one is not wanted. dresidual goes with After.
template <class D>
struct Gradients {
  D* dx;
  MutableReals dgamma, dbeta;
};

template <class D>
void moments_only(const D* x, Layout, Saved);  // rstd is not written
// False: the running statistics are guarded, and the batch was left out.
template <class D>
bool forward_train(const D* x, Layout, D* y, Affine, double eps, Saved, Running, After<D>);
template <class D>
void backward_train(const D* x, Layout, const D* dy, Affine, Saved, Gradients<D>, After<D>);
// The same in halves, between which others' numbers come in. forward: by statistics of more than x. backward: the sums
// over x, then dx from sums over `n` values, x's among them.
template <class D>
void forward_by(const D* x, Layout, D* y, Affine, Saved, After<D>);
template <class D>
void backward_sums(const D* x, Layout, const D* dy, Affine, Saved, double* dbeta, double* dgamma, After<D>);
template <class D>
void backward_by(const D* x, Layout, const D* dy, Affine, Saved, const double* dbeta, const double* dgamma, double n, D* dx,
                 After<D>);
// y may be x, or the residual.
template <class D>
void forward_fixed(const D* x, Layout, D* y, Affine, Fixed, After<D>);
template <class D>
void backward_fixed(const D* x, Layout, const D* dy, Affine, Fixed, Gradients<D>, After<D>);

// Rows of (count, mean (C), mean_tail (C), m2 (C)), `stride` doubles apart, as one batch: the statistics, by terms in the rows' order; its
// count. Not vectorized: the bits are those of the same operations one by one (torch/distributed/peers.py).
double merge_rows(const double* rows, int64_t n, int64_t stride, int64_t channels, double eps, Saved);
// Moves running statistics by a batch of n values, of which `saved` are the statistics. False: guarded, and left out.
bool move(const Running&, const Saved& saved, int64_t channels, double n);

// Room for one bit per value, as the kernels lay them.
template <class D>
int64_t bits_bytes(Layout);

// The floor: c = a (b null), c = a + b (d null), or c = a + b and d = a - b, with the threads that the kernels use.
void memory_floor(const float* a, const float* b, float* c, float* d, int64_t n, bool stream);

}  // namespace normwright

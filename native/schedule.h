// The schedules: kernels put together over threads, with the per-channel arithmetic in the gaps.
#pragma once

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
};
struct MutableReals {
  void* data;  // may be null: then nothing is written
  bool is_double;
  void set(int64_t c, double value) const {
    if (!data) return;
    if (is_double) static_cast<double*>(data)[c] = value;
    else static_cast<float*>(data)[c] = float(value);
  }
};

// What forward leaves for backward: four rows of C doubles. mean + mean_tail is the mean to more digits than one double.
struct Saved {
  double *mean, *mean_tail, *m2, *rstd;
};

// running <- (1 - rate) * running + rate * batch, var unbiased. Null pointers: nothing is remembered.
struct Running {
  MutableReals mean, var;
  int64_t* counter;  // batches so far; may be null
  double rate;       // weight of the new batch; of the k-th batch it is 1/k where cumulative
  bool cumulative;
  bool guarded;      // a batch whose statistics are not finite is left out, all of it
};

template <class T>
void moments_only(const T* x, Layout, Saved);  // rstd is not written
// False: the running statistics are guarded, and the batch was left out.
template <class T>
bool forward_train(const T* x, Layout, T* y, Reals gamma, Reals beta, double eps, Saved, Running);
template <class T>
void backward_train(const T* x, Layout, const T* dy, T* dx, Reals gamma, Saved, MutableReals dgamma, MutableReals dbeta);
template <class T>
void forward_fixed(const T* x, Layout, T* y, Reals gamma, Reals beta, Reals mean, Reals var, double eps);
template <class T>
void backward_fixed(const T* x, Layout, const T* dy, T* dx, Reals gamma, Reals mean, Reals var, double eps,
                    MutableReals dgamma, MutableReals dbeta);

// The floor, b = a and c = a + b (b null: copy), with the threads that the kernels use.
void memory_floor(const float* a, const float* b, float* c, int64_t n, bool stream);

}  // namespace normwright

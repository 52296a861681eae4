// The kernels for Python. Arguments are addresses and sizes: doors check shapes, dtypes and lifetimes before they call,
// because an array argument costs microseconds and an address a tenth of one. Everything here runs without the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <omp.h>

#include <string>
#include <vector>

#include "schedule.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace normwright;

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Reals reals(Address address, bool is_double, double otherwise) { return {at<void>(address), is_double, otherwise}; }
MutableReals mutable_reals(Address address, bool is_double) { return {at<void>(address), is_double}; }

Saved saved_rows(Address address, int64_t channels) {
  double* p = at<double>(address);
  return {p, p + channels, p + 2 * channels, p + 3 * channels};
}

// Calls with a null pointer of the data's type.
template <class Call>
void in_type(bool is_double, Call call) {
  nb::gil_scoped_release release;
  if (is_double) call(static_cast<double*>(nullptr));
  else call(static_cast<float*>(nullptr));
}

template <class T>
using Pointer = std::remove_pointer_t<T>;

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The native kernels. Called by normwright.kernels.cpu and the doors, which check what they pass.";

  m.def(
      "moments",
      [](bool f64, Address x, int64_t outer, int64_t channels, int64_t inner, int64_t stride, Address saved) {
        in_type(f64, [&]<class T>(T*) {
          moments_only(at<const T>(x), {outer, channels, inner, stride}, saved_rows(saved, channels));
        });
      },
      "f64"_a, "x"_a, "outer"_a, "channels"_a, "inner"_a, "stride"_a, "saved"_a,
      "Write mean, mean_tail and m2 of every channel to rows 0, 1, 2 of saved, (4, C) doubles.");

  m.def(
      "forward_train",
      [](bool f64, Address x, int64_t outer, int64_t channels, int64_t inner, int64_t stride, Address y,
         bool f64_parameters, Address gamma, Address beta, double eps, Address saved, Address running_mean,
         Address running_var, double rate) {
        in_type(f64, [&]<class T>(T*) {
          forward_train(at<const T>(x), {outer, channels, inner, stride}, at<T>(y), reals(gamma, f64_parameters, 1),
                        reals(beta, f64_parameters, 0), eps, saved_rows(saved, channels),
                        Running{mutable_reals(running_mean, f64_parameters), mutable_reals(running_var, f64_parameters),
                                rate});
        });
      },
      "f64"_a, "x"_a, "outer"_a, "channels"_a, "inner"_a, "stride"_a, "y"_a, "f64_parameters"_a, "gamma"_a, "beta"_a,
      "eps"_a, "saved"_a, "running_mean"_a, "running_var"_a, "rate"_a,
      "Write y, saved (mean, mean_tail, m2, rstd) and, where their addresses are not 0, the running statistics.");

  m.def(
      "backward_train",
      [](bool f64, Address x, int64_t outer, int64_t channels, int64_t inner, int64_t stride, Address dy, Address dx,
         bool f64_parameters, Address gamma, Address saved, Address dgamma, Address dbeta) {
        in_type(f64, [&]<class T>(T*) {
          backward_train(at<const T>(x), {outer, channels, inner, stride}, at<const T>(dy), at<T>(dx),
                         reals(gamma, f64_parameters, 1), saved_rows(saved, channels),
                         mutable_reals(dgamma, f64_parameters), mutable_reals(dbeta, f64_parameters));
        });
      },
      "f64"_a, "x"_a, "outer"_a, "channels"_a, "inner"_a, "stride"_a, "dy"_a, "dx"_a, "f64_parameters"_a, "gamma"_a,
      "saved"_a, "dgamma"_a, "dbeta"_a, "Write dx, dgamma and dbeta, each where its address is not 0.");

  m.def(
      "forward_fixed",
      [](bool f64, Address x, int64_t outer, int64_t channels, int64_t inner, int64_t stride, Address y,
         bool f64_parameters, Address gamma, Address beta, Address mean, Address var, double eps) {
        in_type(f64, [&]<class T>(T*) {
          forward_fixed(at<const T>(x), {outer, channels, inner, stride}, at<T>(y), reals(gamma, f64_parameters, 1),
                        reals(beta, f64_parameters, 0), reals(mean, f64_parameters, 0), reals(var, f64_parameters, 1),
                        eps);
        });
      },
      "f64"_a, "x"_a, "outer"_a, "channels"_a, "inner"_a, "stride"_a, "y"_a, "f64_parameters"_a, "gamma"_a, "beta"_a,
      "mean"_a, "var"_a, "eps"_a, "Write y, normalized by the given mean and variance.");

  m.def(
      "backward_fixed",
      [](bool f64, Address x, int64_t outer, int64_t channels, int64_t inner, int64_t stride, Address dy, Address dx,
         bool f64_parameters, Address gamma, Address mean, Address var, double eps, Address dgamma, Address dbeta) {
        in_type(f64, [&]<class T>(T*) {
          backward_fixed(at<const T>(x), {outer, channels, inner, stride}, at<const T>(dy), at<T>(dx),
                         reals(gamma, f64_parameters, 1), reals(mean, f64_parameters, 0), reals(var, f64_parameters, 1),
                         eps, mutable_reals(dgamma, f64_parameters), mutable_reals(dbeta, f64_parameters));
        });
      },
      "f64"_a, "x"_a, "outer"_a, "channels"_a, "inner"_a, "stride"_a, "dy"_a, "dx"_a, "f64_parameters"_a, "gamma"_a,
      "mean"_a, "var"_a, "eps"_a, "dgamma"_a, "dbeta"_a, "Write dx, dgamma and dbeta, each where its address is not 0.");

  m.def(
      "memory_floor",
      [](Address a, Address b, Address c, int64_t n, bool stream) {
        nb::gil_scoped_release release;
        memory_floor(at<const float>(a), at<const float>(b), at<float>(c), n, stream);
      },
      "a"_a, "b"_a, "c"_a, "n"_a, "stream"_a,
      "c = a + b over n floats (b at 0: c = a) with all threads; stream: stores that bypass the caches.");

  m.def("isa", [] { return std::string(active_isa().name); }, "The instruction set whose kernels run.");
  m.def(
      "isas",
      [] {
        std::vector<std::string> names;
        for (int k = 0; k < isa_count(); ++k) names.emplace_back(isa_at(k).name);
        return names;
      },
      "The instruction sets that this machine can run, from the plainest to the widest.");
  m.def(
      "force_isa", [](const std::string& name) { return force_isa(name.c_str()); }, "name"_a,
      "Run the kernels of another instruction set; False, and no change, where this machine cannot.");
  m.def("threads", [] { return omp_get_max_threads(); }, "Threads that a large call uses.");
  m.def("set_threads", [](int n) { omp_set_num_threads(n); }, "n"_a, "Use at most n threads from now on.");
  m.def("last_level_cache_bytes", &last_level_cache_bytes, "Size of the last-level cache, as the system tells it.");
}

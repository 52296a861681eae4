// The schedules for torch's tensors.
#include "tensors.h"

using namespace nb::literals;

namespace normwright {
namespace {

std::optional<Seen> seen(nb::handle x, int64_t axis, nb::handle weight, nb::handle bias, nb::handle mean,
                         nb::handle var, nb::handle counter, int64_t least, const Known& known, nb::handle residual,
                         const Activation* activation) {
  Seen s;
  if (!s.x.take(x, axis, known) || !s.follows.take_residual(residual, s.x)) return {};
  s.follows.take_activation(activation);
  const int64_t channels = s.x.at.channels;
  if (!take_both(s.gamma, weight, s.beta, bias, channels) || !take_both(s.mean, mean, s.var, var, channels)) return {};
  if (mean.is_none() != var.is_none() || (least ? s.x.at.count() < least : mean.is_none())) return {};
  if (!counter.is_none()) {
    DlTensor t;
    if (!see(counter, t) || t.ndim != 0 || t.dtype.code != 0 || t.dtype.bits != 64) return {};
    s.counter = static_cast<int64_t*>(t.address());
  }
  return s;
}

}  // namespace

void bind_tensors(nb::module_& m) {
  m.def(
      "use_tensors_of",
      [](nb::handle exchange, nb::handle tensor, nb::handle parameter) {
        const auto* offered = static_cast<const DlTable*>(PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"));
        if (!offered) throw nb::python_error();
        if (offered->major != 1) throw nb::value_error("DLPack 1.x is needed");
        table = offered;
        tensor_type = reinterpret_cast<PyTypeObject*>(tensor.ptr());
        parameter_type = reinterpret_cast<PyTypeObject*>(parameter.ptr());
      },
      "exchange"_a, "tensor"_a, "parameter"_a, "Learn to see tensors of these two classes through their DLPack table.");

  nb::class_<Activation>(m, "Activation", "An activation: its number in normwright.core.activation.KINDS, and its numbers.")
      .def("__init__", [](Activation* self, int kind, double a, double b) {
        if (kind < 0 || kind >= kKinds) throw nb::value_error("kind: the number of an activation");
        new (self) Activation{Kind(kind), a, b};
      }, "kind"_a, "a"_a = 0.0, "b"_a = 0.0);

  nb::class_<Seen>(m, "Seen", "The tensors of one call.")
      .def_prop_ro("channels", [](const Seen& s) { return s.x.at.channels; }, "C.")
      .def_prop_ro(
          "bits_bytes",
          [](const Seen& s) { return s.follows.residual && s.follows.activation.is_told_by_a_bit() ? bytes_of_bits(s.x) : 0; },
          "Room for the bits that backward will need; 0 where it needs none.");

  m.def("see", &seen, "x"_a, "axis"_a, "weight"_a.none(), "bias"_a.none(), "mean"_a.none(), "var"_a.none(),
        "counter"_a.none(), "least"_a, "known"_a.none(), "residual"_a.none() = nb::none(), "activation"_a.none() = nb::none(),
        "The arguments of a call as the kernels see them. None where any is wrong, or of another type than the kernels know, "
        "or not on the CPU, or where x is not dense and its layout (outer, channels, inner, stride) not known. least: the fewest "
        "values of a channel; 0 to normalize by mean and var, which are needed then.");

  m.def(
      "forward_train_seen",
      [](const Seen& s, nb::handle y, double eps, nb::bytearray saved, bool moves, double rate, bool cumulative,
         bool guarded, bool biased, nb::handle bits) {
        const Saved rows = saved_rows(saved, s.x.at.channels);
        const Running running{{moves ? s.mean.data : nullptr, s.mean.is_double},
                              {moves ? s.var.data : nullptr, s.var.is_double},
                              moves ? s.counter : nullptr, rate, cumulative, guarded, biased};
        Follows follows = s.follows;
        void* to = room(y);
        if (!take_bits(follows.bits, bits, s.x)) throw nb::value_error("bits: room for bits_bytes");
        return in_type(s.x.dtype, s.x.values(), [&]<class D>(D*) {
          return forward_train(static_cast<const D*>(s.x.data), s.x.at, static_cast<D*>(to), s.affine(), eps, rows, running,
                               follows.in<D>());
        });
      },
      "seen"_a, "y"_a, "eps"_a, "saved"_a, "moves"_a, "rate"_a, "cumulative"_a, "guarded"_a, "biased"_a,
      "bits"_a.none() = nb::none(), "As forward_train. moves: write the running statistics and the counter.");

  m.def(
      "backward_train_seen",
      [](nb::handle x, int64_t axis, nb::handle dy, nb::handle weight, nb::bytearray saved, nb::handle dx,
         nb::handle dweight, nb::handle dbias, const Known& known, nb::handle bias, const Activation* activation,
         nb::handle residual, nb::handle bits, nb::handle dresidual) {
        Backward g;
        if (!g.take(x, axis, dy, weight, dx, dweight, dbias, known)) return false;
        if (!g.take_follows(bias, activation, residual, bits, dresidual)) return false;
        const Saved rows = saved_rows(saved, g.x.at.channels);
        in_type(g.x.dtype, g.x.values(), [&]<class D>(D*) {
          backward_train(static_cast<const D*>(g.x.data), g.x.at, static_cast<const D*>(g.dy.data), g.affine(), rows,
                         g.in<D>(), g.follows.in<D>());
        });
        return true;
      },
      "x"_a, "axis"_a, "dy"_a, "weight"_a.none(), "saved"_a, "dx"_a.none(), "dweight"_a.none(), "dbias"_a.none(),
      "known"_a.none(), "bias"_a.none() = nb::none(), "activation"_a.none() = nb::none(), "residual"_a.none() = nb::none(),
      "bits"_a.none() = nb::none(), "dresidual"_a.none() = nb::none(),
      "As backward_train, gradients where there is room for them; dy, dx, residual and dresidual dense, in x's order of "
      "axes. False, and nothing is written, where any is not as forward had it.");

  m.def(
      "forward_fixed_seen",
      [](const Seen& s, nb::handle y, double eps, nb::handle bits) {
        Follows follows = s.follows;
        void* to = room(y);
        if (!take_bits(follows.bits, bits, s.x)) throw nb::value_error("bits: room for bits_bytes");
        in_type(s.x.dtype, s.x.values(), [&]<class D>(D*) {
          forward_fixed(static_cast<const D*>(s.x.data), s.x.at, static_cast<D*>(to), s.affine(),
                        Fixed{s.mean.or_else(0), s.var.or_else(1), eps}, follows.in<D>());
        });
      },
      "seen"_a, "y"_a, "eps"_a, "bits"_a.none() = nb::none(), "As forward_fixed.");

  m.def(
      "backward_fixed_seen",
      [](nb::handle x, int64_t axis, nb::handle dy, nb::handle weight, nb::handle mean, nb::handle var, double eps,
         nb::handle dx, nb::handle dweight, nb::handle dbias, const Known& known, nb::handle bias,
         const Activation* activation, nb::handle residual, nb::handle bits, nb::handle dresidual) {
        Backward g;
        PerChannel means, vars;
        if (!g.take(x, axis, dy, weight, dx, dweight, dbias, known)) return false;
        if (!g.take_follows(bias, activation, residual, bits, dresidual)) return false;
        if (!take_both(means, mean, vars, var, g.x.at.channels)) return false;
        in_type(g.x.dtype, g.x.values(), [&]<class D>(D*) {
          backward_fixed(static_cast<const D*>(g.x.data), g.x.at, static_cast<const D*>(g.dy.data), g.affine(),
                         Fixed{means.or_else(0), vars.or_else(1), eps}, g.in<D>(), g.follows.in<D>());
        });
        return true;
      },
      "x"_a, "axis"_a, "dy"_a, "weight"_a.none(), "mean"_a, "var"_a, "eps"_a, "dx"_a.none(), "dweight"_a.none(),
      "dbias"_a.none(), "known"_a.none(), "bias"_a.none() = nb::none(), "activation"_a.none() = nb::none(),
      "residual"_a.none() = nb::none(), "bits"_a.none() = nb::none(), "dresidual"_a.none() = nb::none(),
      "As backward_fixed, otherwise as backward_train_seen.");
}

}  // namespace normwright

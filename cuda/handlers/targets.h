// The list of custom call targets, once for every platform: a name, the handler behind it, and how its arguments bind.
#pragma once

#include <string>
#include <vector>

#include "handlers/cross_entropy.h"
#include "handlers/cross_entropy_options.h"
#include "handlers/divergence.h"
#include "handlers/elementwise.h"

namespace jaxloss {

struct CallTarget {
  std::string name;
  const char* platform;
  XLA_FFI_Handler* handler;
};

using Buffer = ffi::AnyBuffer;

// A C function that binds a call's arguments to `function` and calls it. The traits let XLA put the call in a CUDA
// graph.
template <auto function, auto binding>
XLA_FFI_Error* handle(XLA_FFI_CallFrame* frame) {
  static auto* handler = binding().To(function, {ffi::Traits::kCmdBufferCompatible}).release();
  return handler->Call(frame);
}

template <class Platform>
struct Bindings {
  static auto rows() { return Platform::bind().template Arg<Buffer>().template Arg<Buffer>().template Arg<Buffer>(); }
  static auto value() { return rows().template Ret<Buffer>(); }
  static auto value_and_grad() { return value().template Ret<Buffer>(); }

  static auto elementwise_value() {
    return rows().RemainingArgs().template Ret<Buffer>().template Attr<Constants>("constants");
  }
  static auto elementwise_value_and_grad() {
    return rows().RemainingArgs().template Ret<Buffer>().template Ret<Buffer>().template Attr<Constants>("constants");
  }

  static auto cross_entropy_value() { return value().template Attr<double>("clip"); }
  static auto cross_entropy_value_and_grad() { return value_and_grad().template Attr<double>("clip"); }
  static auto cross_entropy_value_and_stats() {
    return value_and_grad().template Ret<Buffer>().template Attr<double>("clip");
  }
  static auto cross_entropy_grad() {
    return rows().template Arg<Buffer>().template Arg<Buffer>().template Arg<Buffer>().template Ret<Buffer>();
  }
  static auto cross_entropy_with_options() {
    return rows()
        .RemainingArgs()
        .RemainingRets()
        .template Attr<int64_t>("given")
        .template Attr<int64_t>("wanted")
        .template Attr<int64_t>("smoothed_classes")
        .template Attr<double>("clip");
  }

  static auto divergence() { return rows().template Arg<Buffer>().RemainingArgs().template Ret<Buffer>(); }
  static auto divergence_value() { return divergence().RemainingRets(); }
  static auto divergence_value_and_grad() { return divergence().template Ret<Buffer>().RemainingRets(); }
};

template <class Platform, class... Divergence>
void add_divergences(std::vector<CallTarget>& targets, DivergenceList<Divergence...>) {
  using Bind = Bindings<Platform>;
  const auto add = [&](auto divergence_tag, auto given) {
    using D = typename decltype(divergence_tag)::type;
    using Given = decltype(given);
    const std::string name = std::string("jaxloss_") + D::name + "_" + Given::name;
    targets.push_back(
        {name + "_value", Platform::name, handle<divergence_value<Platform, D, Given>, Bind::divergence_value>});
    targets.push_back({name + "_value_and_grad", Platform::name,
                       handle<divergence_value_and_grad<Platform, D, Given>, Bind::divergence_value_and_grad>});
  };
  (add(std::common_type<Divergence>{}, OfLogits{}), ...);
  (add(std::common_type<Divergence>{}, OfProbabilities{}), ...);
}

template <class Platform, class... Loss>
std::vector<CallTarget> targets_of(LossList<Loss...>) {
  using Bind = Bindings<Platform>;
  const char* platform = Platform::name;
  std::vector<CallTarget> targets = {
      {"jaxloss_cross_entropy_value", platform, handle<cross_entropy_value<Platform>, Bind::cross_entropy_value>},
      {"jaxloss_cross_entropy_value_and_stats", platform,
       handle<cross_entropy_value_and_stats<Platform>, Bind::cross_entropy_value_and_stats>},
      {"jaxloss_cross_entropy_value_and_grad", platform,
       handle<cross_entropy_value_and_grad<Platform>, Bind::cross_entropy_value_and_grad>},
      {"jaxloss_cross_entropy_grad", platform, handle<cross_entropy_grad<Platform>, Bind::cross_entropy_grad>},
  };
  if constexpr (Platform::sums_rows) {
    targets.push_back({"jaxloss_cross_entropy_sums_value", platform,
                       handle<cross_entropy_sums_value<Platform>, Bind::cross_entropy_value>});
    targets.push_back({"jaxloss_cross_entropy_sums_value_and_grad", platform,
                       handle<cross_entropy_sums_value_and_grad<Platform>, Bind::cross_entropy_value_and_grad>});
  }
  // One handler; the names say in a profile, and in a compiled module, what a call is for.
  for (const char* purpose : {"value", "value_and_stats", "value_and_grad", "grad", "stats_grad"}) {
    targets.push_back({std::string("jaxloss_cross_entropy_with_options_") + purpose, platform,
                       handle<cross_entropy_with_options<Platform>, Bind::cross_entropy_with_options>});
  }
  if constexpr (Platform::sums_rows) {
    for (const char* purpose : {"value", "value_and_grad"}) {
      targets.push_back({std::string("jaxloss_cross_entropy_with_options_sums_") + purpose, platform,
                         handle<cross_entropy_with_options<Platform>, Bind::cross_entropy_with_options>});
    }
  }
  const auto add = [&](auto loss_tag) {
    using L = typename decltype(loss_tag)::type;
    const std::string name = std::string("jaxloss_") + L::name;
    targets.push_back({name + "_value", platform, handle<elementwise_value<Platform, L>, Bind::elementwise_value>});
    targets.push_back({name + "_value_and_grad", platform,
                       handle<elementwise_value_and_grad<Platform, L>, Bind::elementwise_value_and_grad>});
  };
  (add(std::common_type<Loss>{}), ...);
  add_divergences<Platform>(targets, Divergences{});
  return targets;
}

std::vector<CallTarget> cpu_targets();
std::vector<CallTarget> cuda_targets();

}  // namespace jaxloss

// Which kernel tests ask for.
#pragma once

#include <cstdlib>
#include <cstring>
#include <utility>

namespace jaxloss::gpu {

enum class Regime { any, tiles, registers, cluster, streaming, teams };

// JAXLOSS_CROSS_ENTROPY_KERNEL, for tests: heeded wherever that kernel can take the rows.
inline Regime asked_for() {
  static const Regime regime = [] {
    const std::pair<const char*, Regime> names[] = {{"tiles", Regime::tiles},
                                                    {"registers", Regime::registers},
                                                    {"cluster", Regime::cluster},
                                                    {"streaming", Regime::streaming},
                                                    {"teams", Regime::teams}};
    if (const char* asked = std::getenv("JAXLOSS_CROSS_ENTROPY_KERNEL")) {
      for (const auto& [name, named] : names) {
        if (std::strcmp(asked, name) == 0) return named;
      }
    }
    return Regime::any;
  }();
  return regime;
}

}  // namespace jaxloss::gpu

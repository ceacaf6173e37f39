// The vector functions of the CPU kernels against those of double, over all the range that each accepts: every exponent
// of float with a few hundred of its mantissas, its smallest and its largest ones among them, of both signs, and zeros,
// infinities and NaN. Prints for each function its name, the largest error in units in the last place, and where it is.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/steps.h"

namespace {

using namespace jaxloss::JAXLOSS_ISA;

float float_of_bits(uint32_t word) {
  float x;
  std::memcpy(&x, &word, sizeof(x));
  return x;
}

std::vector<float> all_floats() {
  std::vector<float> floats;
  for (uint32_t sign : {0u, 0x80000000u}) {
    for (uint32_t exponent = 0; exponent < 256; exponent++) {
      const uint32_t base = sign | exponent << 23;
      for (uint32_t edge = 0; edge < 64; edge++) {
        floats.push_back(float_of_bits(base | edge));
        floats.push_back(float_of_bits(base | (0x7fffff - edge)));
      }
      for (uint32_t mantissa = 64; mantissa < 0x7fffff; mantissa += 1009) {
        floats.push_back(float_of_bits(base | mantissa));
      }
    }
  }
  while (floats.size() % kLanes) floats.push_back(0.0f);
  return floats;
}

// The distance of two neighbouring floats where `x` is.
double unit(double x) {
  const int exponent = std::max(std::ilogb(std::fabs(x)), -126);
  return std::ldexp(1.0, exponent - 23);
}

// In units; infinite for what is wrong altogether. `flushes`: a result below the smallest normal number may be zero.
double error(float found, double exact, bool flushes) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const float nearest = static_cast<float>(exact);
  if (std::isnan(exact)) return std::isnan(found) ? 0 : infinity;
  if (std::isinf(nearest) || std::isinf(exact) || found == nearest) {
    return found == nearest || (!std::isinf(exact) && found == std::nextafterf(nearest, 0)) ? 0 : infinity;
  }
  if (!std::isfinite(found)) return infinity;
  if (flushes && found == 0 && std::fabs(exact) < std::numeric_limits<float>::min()) return 0;
  return std::fabs(found - exact) / unit(exact);
}

template <class Accepted, class Function, class Exact>
void measure(const char* name, const std::vector<float>& floats, bool flushes, Accepted accepted, Function function,
             Exact exact) {
  double largest = 0;
  float at = 0;
  float numbers[kLanes], results[kLanes];
  for (size_t i = 0; i < floats.size(); i += kLanes) {
    for (int k = 0; k < kLanes; k++) numbers[k] = accepted(floats[i + k]) ? floats[i + k] : 0.0f;
    Step<float>::store(results, function(Step<float>::load(numbers)));
    for (int k = 0; k < kLanes; k++) {
      const double found = error(results[k], exact(static_cast<double>(numbers[k])), flushes);
      if (found > largest) {
        largest = found;
        at = numbers[k];
      }
    }
  }
  std::printf("%s %.4f %.9g\n", name, largest, at);
}

}  // namespace

int main() {
  const std::vector<float> floats = all_floats();
  const auto any = [](float) { return true; };
  const auto negative = [](float x) { return !(x > 0); };
  measure(
      "exponential", floats, false, any, [](Vector x) { return exponential(x); }, [](double x) { return std::exp(x); });
  measure(
      "exponential_of_negative", floats, true, negative, [](Vector x) { return exponential_of_negative(x); },
      [](double x) { return std::exp(x); });
  measure(
      "exponential_minus_one", floats, false, negative, [](Vector x) { return exponential_minus_one(x); },
      [](double x) { return std::expm1(x); });
  measure(
      "log_one_plus", floats, false, [](float x) { return x >= -0.5f && x <= 1; },
      [](Vector x) { return log_one_plus(x); }, [](double x) { return std::log1p(x); });
  measure("logarithm", floats, false, any, [](Vector x) { return logarithm(x); }, [](double x) { return std::log(x); });
  measure(
      "hyperbolic_tangent", floats, false, any, [](Vector x) { return hyperbolic_tangent(x); },
      [](double x) { return std::tanh(x); });
}

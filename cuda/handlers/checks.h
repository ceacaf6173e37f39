// What every handler asks of its buffers before a kernel sees them. Python has checked the same with better words; here
// it is memory that is protected, whoever the caller is.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "tasks.h"
#include "xla/ffi/api/ffi.h"

namespace jaxloss {

namespace ffi = xla::ffi;

using Dimensions = ffi::AnyBuffer::Dimensions;

template <class Stored>
struct DataTypeOf;
template <>
struct DataTypeOf<float> {
  static constexpr ffi::DataType value = ffi::F32;
};
template <>
struct DataTypeOf<double> {
  static constexpr ffi::DataType value = ffi::F64;
};
template <>
struct DataTypeOf<int32_t> {
  static constexpr ffi::DataType value = ffi::S32;
};
template <>
struct DataTypeOf<bfloat16> {
  static constexpr ffi::DataType value = ffi::BF16;
};
template <>
struct DataTypeOf<float16> {
  static constexpr ffi::DataType value = ffi::F16;
};

// What is inlined has a copy in each handler, and takes long to compile; a check is not on a path whose time counts.
#define JAXLOSS_CALLED __attribute__((noinline))

JAXLOSS_CALLED inline int64_t product(Dimensions dimensions, size_t first, size_t last) {
  int64_t count = 1;
  for (size_t axis = first; axis < last; axis++) count *= dimensions[axis];
  return count;
}

JAXLOSS_CALLED inline std::string written(Dimensions dimensions) {
  std::string text = "[";
  for (size_t axis = 0; axis < dimensions.size(); axis++) {
    text += (axis ? ", " : "") + std::to_string(dimensions[axis]);
  }
  return text + "]";
}

// Checks buffers one after the other and keeps the first complaint.
class Checks {
 public:
  // `buffer` holds `Stored` and its axes are the first `rank` axes of `whole`, then `extra` (none if negative).
  template <class Stored, class Buffer>
  Checks& leading(const char* name, const Buffer& buffer, Dimensions whole, size_t rank, int64_t extra = -1) {
    return leading(name, buffer.element_type(), DataTypeOf<Stored>::value, buffer.dimensions(), whole, rank, extra);
  }

  JAXLOSS_CALLED Checks& require(bool condition, const char* complaint) {
    if (!condition && complaint_.empty()) complaint_ = complaint;
    return *this;
  }
  JAXLOSS_CALLED Checks& require(bool condition, const char* name, const char* complaint) {
    if (!condition && complaint_.empty()) complaint_ = std::string(name) + complaint;
    return *this;
  }
  JAXLOSS_CALLED Checks& require(bool condition, const std::string& complaint) {
    if (!condition && complaint_.empty()) complaint_ = complaint;
    return *this;
  }

  // 0 for none; NaN is no clip.
  JAXLOSS_CALLED Checks& clip(double clip) {
    return require(clip >= 0 && clip < 1, "clip is " + std::to_string(clip) + ": expected at least 0 and less than 1");
  }

  bool passed() const { return complaint_.empty(); }
  JAXLOSS_CALLED ffi::Error error() const { return ffi::Error::InvalidArgument("jaxloss: " + complaint_); }

 private:
  JAXLOSS_CALLED Checks& leading(const char* name, ffi::DataType found_type, ffi::DataType type, Dimensions found,
                                 Dimensions whole, size_t rank, int64_t extra) {
    if (found_type != type) {
      require(false, std::string(name) + " has element type " + std::to_string(static_cast<int>(found_type)) +
                         ": expected " + std::to_string(static_cast<int>(type)));
    }
    bool same = rank <= whole.size() && found.size() == rank + (extra >= 0 ? 1 : 0);
    for (size_t axis = 0; same && axis < rank; axis++) same = found[axis] == whole[axis];
    if (same && extra >= 0) same = found[rank] == extra;
    if (!same) {
      require(false, std::string(name) + " has shape " + written(found) + ": expected the first " +
                         std::to_string(rank) + " axes of " + written(whole) +
                         (extra >= 0 ? " and " + std::to_string(extra) : ""));
    }
    return *this;
  }

  std::string complaint_;
};

template <class Stored, class Buffer>
Stored* data(const Buffer& buffer) {
  return static_cast<Stored*>(buffer.untyped_data());
}

JAXLOSS_CALLED inline ffi::Error no_kernel(ffi::DataType prediction, ffi::DataType target) {
  return ffi::Error::InvalidArgument("jaxloss: no kernel for a prediction of element type " +
                                     std::to_string(static_cast<int>(prediction)) + " with a target of element type " +
                                     std::to_string(static_cast<int>(target)));
}

// Calls `body(StoredTypes<…>{})` for the pair of stored types that the buffers hold.
template <class Body, class... Pair>
ffi::Error for_stored_types(ffi::DataType prediction, ffi::DataType target, Body body, List<Pair...>) {
  std::optional<ffi::Error> result;
  const auto attempt = [&](auto pair) {
    using Types = decltype(pair);
    if (prediction == DataTypeOf<typename Types::Prediction>::value &&
        target == DataTypeOf<typename Types::Target>::value) {
      result = body(pair);
    }
  };
  (attempt(Pair{}), ...);
  return result ? std::move(*result) : no_kernel(prediction, target);
}

}  // namespace jaxloss

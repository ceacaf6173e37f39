// As many short rows as a vector has lanes, turned so that a vector holds one element of each.
#pragma once

#include <utility>

#include "cpu/steps.h"

namespace jaxloss::JAXLOSS_ISA {

// Lane i of the result is lane `from[i]` of the lanes of a followed by those of b.
template <int... from>
JAXLOSS_INLINE FloatRegister shuffled(FloatRegister a, FloatRegister b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, from...);
#else
  return __builtin_shuffle(a, b, IntRegister{from...});
#endif
}

// In blocks of `size` lanes: the even blocks of both, and the odd blocks of both.
template <int size, int... i>
JAXLOSS_INLINE FloatRegister even_blocks(FloatRegister a, FloatRegister b, std::integer_sequence<int, i...>) {
  return shuffled<(i & size ? kRegisterLanes + i - size : i)...>(a, b);
}
template <int size, int... i>
JAXLOSS_INLINE FloatRegister odd_blocks(FloatRegister a, FloatRegister b, std::integer_sequence<int, i...>) {
  return shuffled<(i & size ? kRegisterLanes + i : i + size)...>(a, b);
}

// Swaps rows and columns, of blocks of half the size, then inside the blocks.
template <int size = kRegisterLanes / 2>
JAXLOSS_INLINE void transpose(FloatRegister (&square)[kRegisterLanes]) {
  if constexpr (size > 0) {
    constexpr auto lanes = std::make_integer_sequence<int, kRegisterLanes>{};
    for (int i = 0; i < kRegisterLanes; i++) {
      if (i & size) continue;
      const FloatRegister a = square[i], b = square[i + size];
      square[i] = even_blocks<size>(a, b, lanes);
      square[i + size] = odd_blocks<size>(a, b, lanes);
    }
    transpose<size / 2>(square);
  }
}

// The last of rows that are shorter than a register: a register that begins with one goes beyond the end of them all,
// so it goes here instead, where there is room.
template <class Stored>
struct LastShortRows {
  const Stored* end;
  Stored numbers[2 * kRegisterLanes] = {};

  JAXLOSS_INLINE LastShortRows(const Stored* rows, int64_t width) : end(rows + kLanes * width) {
    std::memcpy(numbers, end - kRegisterLanes, kRegisterLanes * sizeof(Stored));
  }
  template <class Pointer>
  JAXLOSS_INLINE Pointer place_of(Pointer row) {
    return end - row < kRegisterLanes ? numbers + (kRegisterLanes - (end - row)) : row;
  }
  JAXLOSS_INLINE void give_back(Stored* rows, int64_t width) const {
    const int64_t count = (kRegisterLanes - 1) / width * width;
    std::memcpy(rows + kLanes * width - count, numbers + kRegisterLanes - count, count * sizeof(Stored));
  }
};

// `kLanes` rows of at most `kMost` elements, which lie one after the other in memory. (Calls: a copy of these functions
// in each kernel would be most of what is compiled.)
template <int64_t kMost>
struct Columns {
  static_assert(kMost >= kRegisterLanes);
  Vector column[kMost];

  template <class Stored>
  __attribute__((noinline)) void load(const Stored* rows, int64_t width) {
    if (width < kRegisterLanes) return load_short(rows, width);
    for (int k = 0; k < kRegisters; k++) {
      const Stored* from = rows + k * kRegisterLanes * width;
      for_each_square(width, [&](int64_t first) JAXLOSS_IN_LOOP {
        FloatRegister square[kRegisterLanes];
        for (int i = 0; i < kRegisterLanes; i++) square[i] = load_register(from + i * width + first);
        transpose(square);
        for (int i = 0; i < kRegisterLanes; i++) column[first + i].registers[k] = square[i];
      });
    }
  }

  template <class Stored>
  __attribute__((noinline)) void store(Stored* rows, int64_t width) const {
    if (width < kRegisterLanes) return store_short(rows, width);
    for (int k = 0; k < kRegisters; k++) {
      Stored* to = rows + k * kRegisterLanes * width;
      for_each_square(width, [&](int64_t first) JAXLOSS_IN_LOOP {
        FloatRegister square[kRegisterLanes];
        for (int i = 0; i < kRegisterLanes; i++) square[i] = column[first + i].registers[k];
        transpose(square);
        for (int i = 0; i < kRegisterLanes; i++) store_register(to + i * width + first, square[i]);
      });
    }
  }

 private:
  // The last square of a width that is not a multiple of them goes over columns of the one before once more.
  template <class Body>
  JAXLOSS_INLINE static void for_each_square(int64_t width, Body body) {
    for (int64_t first = 0; first < width; first += kRegisterLanes) {
      body(first + kRegisterLanes <= width ? first : width - kRegisterLanes);
    }
  }

  // A register takes in of the next rows what it has room for: columns that are not asked for.
  template <class Stored>
  JAXLOSS_INLINE void load_short(const Stored* rows, int64_t width) {
    LastShortRows<Stored> last(rows, width);
    for (int k = 0; k < kRegisters; k++) {
      const Stored* from = rows + k * kRegisterLanes * width;
      FloatRegister square[kRegisterLanes];
      for (int i = 0; i < kRegisterLanes; i++) square[i] = load_register(last.place_of(from + i * width));
      transpose(square);
      for (int i = 0; i < kRegisterLanes; i++) column[i].registers[k] = square[i];
    }
  }
  // What a register writes beyond its row, the next rows write over.
  template <class Stored>
  JAXLOSS_INLINE void store_short(Stored* rows, int64_t width) const {
    LastShortRows<Stored> last(rows, width);
    for (int k = 0; k < kRegisters; k++) {
      Stored* to = rows + k * kRegisterLanes * width;
      FloatRegister square[kRegisterLanes];
      for (int i = 0; i < kRegisterLanes; i++) square[i] = i < width ? column[i].registers[k] : FloatRegister{};
      transpose(square);
      for (int i = 0; i < kRegisterLanes; i++) store_register(last.place_of(to + i * width), square[i]);
    }
    last.give_back(rows, width);
  }
};

// Fewer rows than lanes, copied to where there is room for as many: so a row gives the same bits wherever it stands.
template <class Number, int64_t a_row = 1>
struct Padded {
  Number numbers[kLanes * a_row] = {};

  JAXLOSS_INLINE Number* filled(const Number* from, int64_t count) {
    std::memcpy(numbers, from, count * sizeof(Number));
    return numbers;
  }
  JAXLOSS_INLINE void give_back(Number* to, int64_t count) const { std::memcpy(to, numbers, count * sizeof(Number)); }
};

// Of `count` rows, turned; where there are fewer than lanes, from a copy with room for as many.
template <int64_t kMost, class Stored>
__attribute__((noinline)) void load_columns(Columns<kMost>& columns, const Stored* from, int64_t count,
                                            int64_t classes) {
  if (count == kLanes) return columns.load(from, classes);
  Padded<Stored, kMost> padded;
  columns.load(padded.filled(from, count * classes), classes);
}
template <int64_t kMost, class Stored>
__attribute__((noinline)) void store_columns(const Columns<kMost>& columns, Stored* to, int64_t count,
                                             int64_t classes) {
  if (count == kLanes) return columns.store(to, classes);
  Padded<Stored, kMost> padded;
  columns.store(padded.numbers, classes);
  padded.give_back(to, count * classes);
}

}  // namespace jaxloss::JAXLOSS_ISA

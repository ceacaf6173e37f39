// The list of everything a kernel can be asked to do: each loss over each pair of stored types. Handlers choose from
// it, and every platform instantiates its kernels from it.
#pragma once

#include "maths/divergence.h"
#include "maths/elementwise.h"
#include "rows.h"

namespace jaxloss {

template <class... Types>
struct List {};

template <class... Lists>
struct Concatenate;
template <class... A>
struct Concatenate<List<A...>> {
  using type = List<A...>;
};
template <class... A, class... B, class... Rest>
struct Concatenate<List<A...>, List<B...>, Rest...> : Concatenate<List<A..., B...>, Rest...> {};

template <class Prediction_, class Target_>
struct StoredTypes {
  using Prediction = Prediction_;
  using Target = Target_;
};

// A target is stored like the prediction, or in float32 where the prediction has 16 bits.
using StoredPairs = List<StoredTypes<float, float>, StoredTypes<bfloat16, bfloat16>, StoredTypes<float16, float16>,
                         StoredTypes<double, double>, StoredTypes<bfloat16, float>, StoredTypes<float16, float>>;

template <class Loss_, class Prediction, class Target>
struct ElementwiseTask {
  using Loss = Loss_;
  Loss loss;
  ElementwiseRows<Prediction, Target, Loss::parameter_count> rows;
};

template <class Loss, class Pairs>
struct ElementwiseTasksOf;
template <class Loss, class... Pair>
struct ElementwiseTasksOf<Loss, List<Pair...>> {
  using type = List<ElementwiseTask<Loss, typename Pair::Prediction, typename Pair::Target>...>;
};
template <class Losses>
struct ElementwiseTasksOfAll;
template <class... Loss>
struct ElementwiseTasksOfAll<LossList<Loss...>> : Concatenate<typename ElementwiseTasksOf<Loss, StoredPairs>::type...> {
};
using ElementwiseTasks = ElementwiseTasksOfAll<ElementwiseLosses>::type;

template <template <class, class> class Rows, class Pairs>
struct RowsOfLogits;
template <template <class, class> class Rows, class... Pair>
struct RowsOfLogits<Rows, List<Pair...>> {
  using type =
      List<Rows<float, ClassIndices>, Rows<bfloat16, ClassIndices>, Rows<float16, ClassIndices>,
           Rows<double, ClassIndices>, Rows<typename Pair::Prediction, ClassProbabilities<typename Pair::Target>>...>;
};
using CrossEntropyTasks = RowsOfLogits<CrossEntropyRows, StoredPairs>::type;
using CrossEntropyGradientTasks = RowsOfLogits<CrossEntropyGradientRows, StoredPairs>::type;
using CrossEntropyOptionTasks = RowsOfLogits<CrossEntropyOptionRows, StoredPairs>::type;

template <class Divergence, class Pairs>
struct DivergenceTasksOf;
template <class Divergence, class... Pair>
struct DivergenceTasksOf<Divergence, List<Pair...>> {
  using type =
      List<DivergenceRows<Divergence, typename Pair::Prediction, TeacherLogits<typename Pair::Target>>...,
           DivergenceRows<Divergence, typename Pair::Prediction, ClassProbabilities<typename Pair::Target>>...>;
};
template <class Divergences>
struct DivergenceTasksOfAll;
template <class... Divergence>
struct DivergenceTasksOfAll<DivergenceList<Divergence...>>
    : Concatenate<typename DivergenceTasksOf<Divergence, StoredPairs>::type...> {};
using DivergenceTasks = DivergenceTasksOfAll<Divergences>::type;

using Tasks = Concatenate<ElementwiseTasks, CrossEntropyTasks, CrossEntropyGradientTasks, CrossEntropyOptionTasks,
                          DivergenceTasks>::type;

}  // namespace jaxloss

// The handlers of the library, called as XLA calls them but without it: whatever buffers and attributes a call has, and
// with sanitizers. Compiled into one shared object with the library's own sources.
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "xla_stand_in.h"

namespace {

struct Buffer {
  int32_t type;
  void* data;
  int64_t rank;
  int64_t* sizes;
};

struct Attribute {
  const char* name;
  int32_t kind;  // of XLA_FFI_AttrType
  int32_t type;
  int64_t size;  // of an array, or of a text
  void* data;
};

std::vector<XLA_FFI_Buffer> buffers_of(const Buffer* given, int64_t count) {
  std::vector<XLA_FFI_Buffer> buffers;
  for (int64_t i = 0; i < count; i++) {
    buffers.push_back({XLA_FFI_Buffer_STRUCT_SIZE, nullptr, static_cast<XLA_FFI_DataType>(given[i].type), given[i].data,
                       given[i].rank, given[i].sizes});
  }
  return buffers;
}

template <class T>
std::vector<void*> addresses(std::vector<T>& of) {
  std::vector<void*> all;
  for (T& each : of) all.push_back(&each);
  return all;
}

}  // namespace

// The code of the error, 0 for none, whose message is written to `message`.
extern "C" int32_t hosted_call(XLA_FFI_Handler* handler, const Buffer* operands, int64_t operand_count,
                               const Buffer* results, int64_t result_count, const Attribute* attributes,
                               int64_t attribute_count, char* message, int64_t message_size) {
  static auto* threads = new XLA_FFI_ExecutionContext(4);  // it ends with the process
  std::vector<XLA_FFI_Buffer> arguments = buffers_of(operands, operand_count);
  std::vector<XLA_FFI_Buffer> returned = buffers_of(results, result_count);
  std::vector<void*> argument_pointers = addresses(arguments), returned_pointers = addresses(returned);
  std::vector<XLA_FFI_ArgType> argument_types(operand_count, XLA_FFI_ArgType_BUFFER);
  std::vector<XLA_FFI_RetType> returned_types(result_count, XLA_FFI_RetType_BUFFER);

  std::vector<XLA_FFI_ByteSpan> names, texts(attribute_count);
  std::vector<XLA_FFI_Scalar> scalars(attribute_count);
  std::vector<XLA_FFI_Array> arrays(attribute_count);
  std::vector<XLA_FFI_AttrType> kinds;
  std::vector<void*> values;
  for (int64_t i = 0; i < attribute_count; i++) {
    const Attribute& attribute = attributes[i];
    const auto type = static_cast<XLA_FFI_DataType>(attribute.type);
    names.push_back({attribute.name, std::string(attribute.name).size()});
    kinds.push_back(static_cast<XLA_FFI_AttrType>(attribute.kind));
    scalars[i] = {type, attribute.data};
    arrays[i] = {type, static_cast<size_t>(attribute.size), attribute.data};
    texts[i] = {static_cast<const char*>(attribute.data), static_cast<size_t>(attribute.size)};
    values.push_back(attribute.kind == XLA_FFI_AttrType_SCALAR  ? static_cast<void*>(&scalars[i])
                     : attribute.kind == XLA_FFI_AttrType_ARRAY ? static_cast<void*>(&arrays[i])
                                                                : static_cast<void*>(&texts[i]));
  }
  std::vector<XLA_FFI_ByteSpan*> name_pointers;
  for (XLA_FFI_ByteSpan& name : names) name_pointers.push_back(&name);

  XLA_FFI_CallFrame frame = {};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.api = &stand_in::api();
  frame.ctx = threads;
  frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
  frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, operand_count, argument_types.data(), argument_pointers.data()};
  frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, result_count, returned_types.data(), returned_pointers.data()};
  frame.attrs = {XLA_FFI_Attrs_STRUCT_SIZE, nullptr,      attribute_count, kinds.data(),
                 name_pointers.data(),      values.data()};
  XLA_FFI_Error* error = handler(&frame);
  if (error == nullptr) return 0;
  std::snprintf(message, message_size, "%s", error->message.c_str());
  const int32_t code = error->code;
  delete error;
  return code;
}

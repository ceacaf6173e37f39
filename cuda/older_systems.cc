// What this compiler's headers call and the libraries of older systems lack, for a library that is to load there.
#include <new>
#include <sstream>

// Of glibc 2.32: whether the process has one thread. With 0, references are always counted atomically.
extern "C" char __libc_single_threaded;
char __libc_single_threaded = 0;

namespace std {

// Of the libstdc++ of GCC 11 and of GCC 9.
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
template class __cxx11::basic_stringstream<char>;

}  // namespace std

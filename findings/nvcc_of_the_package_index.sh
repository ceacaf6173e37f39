#!/usr/bin/env bash
# nvidia-cuda-nvcc 13.0.88 with the parts that it needs (crt, nvvm, runtime, cccl): nvcc compiles, and does not link. Its profile
# has the linker look in ../lib64, and the packages put their libraries into ../lib, where there is no libcudart.so either.
# Seen: "cannot find -lcudadevrt, cannot find -lcudart_static"; with -L and that folder it links.
. "$(dirname "$0")/fresh_environment.sh" nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
  nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
toolkit=$(run -c 'import nvidia; print(next(iter(nvidia.__path__)))')/cu13
"$toolkit/bin/nvcc" --version | grep release
cat >program.cu <<'CU'
__global__ void twice(float* x) { *x *= 2; }
int main() { return 0; }
CU
"$toolkit/bin/nvcc" -arch=sm_90 -c program.cu -o program.o
echo "compiles"
if "$toolkit/bin/nvcc" -arch=sm_90 program.cu -o program 2>log; then
  echo "links now: this finding is out of date"
  exit 1
fi
grep -o 'cannot find -l[a-z_]*' log | sort -u | paste -sd,
"$toolkit/bin/nvcc" -arch=sm_90 -L"$toolkit/lib" program.cu -o program
echo "links with -L$(basename "$toolkit")/lib"
[ ! -e "$toolkit/lib64" ] && [ ! -e "$toolkit/lib/libcudart.so" ]

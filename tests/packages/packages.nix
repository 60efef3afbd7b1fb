# Real packages from a distribution's source archive, as plain derivations: with nothing but what is in the store.
# `check` has each of them run its own test suite, and write what came of it to its output's file `tests`.
{
  system,
  cc,
  tools,
  sources ? null,
  # Linux, unpacked.
  linux ? null,
  # Whether packages run their test suites.
  check ? true,
  # How well compilers optimize, where that makes the difference between one minute and three.
  optimize ? "-O2",
  # What makes a derivation another one.
  salt ? "",
  # The processor that QEMU's user mode has.
  cpu ? null,
}:

let
  package =
    name:
    {
      src ? null,
      build,
      test,
      ...
    }@package:
    derivation {
      inherit
        name
        system
        cc
        tools
        build
        optimize
        salt
        ;
      QEMU_CPU = cpu;
      linux = package.linux or null;
      src = if src == null then null else "${sources}/${src}";
      check = if check then test else "";
      builder = "${tools}/bin/bash";
      args = [ ./setup.sh ];
    };
in
builtins.mapAttrs package {
  # GNU's way, with a long configure script.
  popt = {
    src = "popt_1.19+dfsg.orig.tar.xz";
    build = ''
      sed -i "s#/bin/echo#$tools/bin/echo#" tests/test-poptrc.in
      ./configure --prefix=$out --disable-nls
      make -j$jobs
      make install
    '';
    test = ''
      make check || true
      cat tests/testit.sh.log
      summary $(grep -c '^PASS: ' tests/testit.sh.log || true) $(grep -c '^FAIL: ' tests/testit.sh.log || true) 0
    '';
  };

  # A plain Makefile.
  bzip2 = {
    src = "bzip2_1.0.8.orig.tar.gz";
    build = ''
      make -j$jobs CFLAGS="$optimize" bzip2 bzip2recover libbz2.a
      make install PREFIX=$out
    '';
    test = ''
      passed=0
      for level in 1 2 3; do
          ./bzip2 -$level <sample$level.ref >sample$level.rb2
          ./bzip2 -d <sample$level.bz2 >sample$level.tst
          if cmp sample$level.bz2 sample$level.rb2; then passed=$((passed + 1)); fi
          if cmp sample$level.tst sample$level.ref; then passed=$((passed + 1)); fi
      done
      summary $passed $((6 - passed)) 0
    '';
  };

  # cmake and ninja.
  json-c = {
    src = "json-c_0.18+ds.orig.tar.xz";
    build = ''
      cmake -G Ninja -B build -DCMAKE_INSTALL_PREFIX=$out -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF -DBUILD_STATIC_LIBS=OFF
      ninja -C build -j$jobs
      ninja -C build install
    '';
    test = ''
      cmake build -DBUILD_TESTING=ON
      ninja -C build -j$jobs
      ctest_in build $jobs
    '';
  };

  # C++ with the standard library.
  jsoncpp = {
    src = "libjsoncpp_1.9.6.orig.tar.gz";
    build = ''
      cmake -G Ninja -B build -DCMAKE_INSTALL_PREFIX=$out -DCMAKE_BUILD_TYPE=Release -DJSONCPP_WITH_TESTS=OFF
      ninja -C build -j$jobs
      ninja -C build install
    '';
    test = ''
      cmake build -DJSONCPP_WITH_TESTS=ON -DJSONCPP_WITH_POST_BUILD_UNITTEST=OFF
      ninja -C build -j$jobs
      # Two of its tests write the same files.
      ctest_in build 1
    '';
  };

  # A small one in C++.
  tinyxml2 = {
    src = "tinyxml2_11.0.0+dfsg.orig.tar.xz";
    build = ''
      make -j$jobs CXX=g++ CXXFLAGS=$optimize xmltest staticlib
      make install prefix=$out CXX=g++ CXXFLAGS=$optimize
    '';
    test = ''
      ./xmltest | tee log || true
      summary $(sed -n 's/^Pass \([0-9]*\), Fail \([0-9]*\)$/\1 \2/p' log) 0
    '';
  };

  # Its test suite is about threads, sockets, signals, processes and files.
  libuv = {
    src = "libuv1_1.50.0.orig.tar.gz";
    build = ''
      cmake -G Ninja -B build -DCMAKE_INSTALL_PREFIX=$out -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF
      ninja -C build -j$jobs
      ninja -C build install
    '';
    test = ''
      cmake build -DBUILD_TESTING=ON
      ninja -C build -j$jobs
      build/uv_run_tests 2>&1 | tee log || true
      summary $(grep -c '^ok ' log || true) $(grep -c '^not ok ' log || true) $(grep -c '^ok .*# SKIP' log || true)
    '';
  };

  # An embedded developer's work: the smallest kernel, and a module outside of its tree. All of the kernel takes half an hour under
  # an emulator: without a check it is as much as takes a few minutes.
  linux = {
    inherit linux;
    build = ''
      export KBUILD_BUILD_TIMESTAMP=1980-01-01 KBUILD_BUILD_USER=nix KBUILD_BUILD_HOST=nix
      make="make -C $linux O=$PWD/build ARCH=${
        {
          riscv64-linux = "riscv";
          aarch64-linux = "arm64";
          x86_64-linux = "x86_64";
        }
        .${system}
      }"
      $make tinyconfig
      bash $linux/scripts/config --file build/.config --enable MODULES --enable MODULE_UNLOAD
      $make olddefconfig
      $make -j$jobs modules_prepare ${if check then "vmlinux" else "init/ kernel/irq/ kernel/time/"}
      mkdir module
      echo 'obj-m := hello.o' >module/Makefile
      cat >module/hello.c <<END
      #include <linux/module.h>
      static int __init hello_init(void) { pr_info("hello\n"); return 0; }
      static void __exit hello_exit(void) { }
      module_init(hello_init);
      module_exit(hello_exit);
      MODULE_LICENSE("GPL");
      END
      $make -j$jobs M=$PWD/module KBUILD_MODPOST_WARN=1 modules
      cp ${if check then "build/vmlinux" else "build/kernel/time/*.o"} module/hello.ko $out/
    '';
    # It has no test suite that runs where it is built: what came out is looked at.
    test = ''
      passed=0
      for file in $out/vmlinux $out/hello.ko; do
          if readelf -h $file | grep 'Class: *ELF64'; then passed=$((passed + 1)); fi
      done
      release=$(cat build/include/config/kernel.release)
      if grep -a "vermagic=$release " $out/hello.ko >vermagic; then passed=$((passed + 1)); fi
      summary $passed $((3 - passed)) 0
    '';
  };

  # An extension of Python's, in C, with a library that is another package.
  xxhash = {
    src = "python-xxhash_3.2.0.orig.tar.gz";
    build = ''
      # Made of a version control's tag, which a source package has not got.
      printf 'VERSION = "3.2.0"\nVERSION_TUPLE = (3, 2, 0)\n' >xxhash/version.py
      export XXHASH_LINK_SO=1 CC=gcc LDSHARED="gcc -shared"
      python3 setup.py build --build-lib=$out
    '';
    test = ''
      # Not where the package is without its extension.
      (cd tests && PYTHONPATH=$out python3 -m unittest discover --verbose) 2>&1 | tee log || true
      summary $(grep -c ' ok$' log || true) $(grep -cE ' (FAIL|ERROR)$' log || true) $(grep -c ' skipped ' log || true)
    '';
  };

  # A crate of Rust's.
  strsim = {
    src = "rust-strsim_0.11.1.orig.tar.gz";
    build = ''
      cargo build --offline --release
      cp target/release/libstrsim.rlib $out/
    '';
    test = ''
      cargo test --offline 2>&1 | tee log || true
      summary $(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed; \([0-9]*\) ignored;.*/\1 \2 \3/p' log |
          awk '{ passed += $1; failed += $2; ignored += $3 } END { print passed + 0, failed + 0, ignored + 0 }')
    '';
  };

  # A module of Go's.
  uuid = {
    src = "golang-github-google-uuid_1.6.0.orig.tar.gz";
    build = ''
      go build -o $out/uuid.a
    '';
    test = ''
      go test -v 2>&1 | tee log || true
      summary $(grep -c '^--- PASS' log || true) $(grep -c '^--- FAIL' log || true) $(grep -c '^--- SKIP' log || true)
    '';
  };
}

package datapath

// Committed like the datapath's own object, and built by the same compiler.
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -no-global-types -type tuple -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Werror -I/usr/include/x86_64-linux-gnu" harness ../../../bpf/bench/harness.bpf.c

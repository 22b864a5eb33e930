package capture

// Built and committed as pkg/xdp does it, by the same compiler.
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -no-global-types -type event -type extent -type tally -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Werror -I/usr/include/x86_64-linux-gnu" probe ../../bpf/capture.bpf.c

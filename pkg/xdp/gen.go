package xdp

// The objects are built for every little-endian machine and committed, so that
// building the daemon needs no compiler for C. The major version of clang is
// part of the result; CI regenerates with the same one. Structs are mirrored by
// hand in layout.go, because one source makes two layouts.
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -no-global-types -type verdict -type flow_flag -type slot_flag -type service_flag -type replica_answer -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Werror -I/usr/include/x86_64-linux-gnu" balancer ../../bpf/balancer.bpf.c
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -no-global-types -cflags "-DPGSTEER_IPV6 -O2 -g -mcpu=v3 -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Werror -I/usr/include/x86_64-linux-gnu" balancer6 ../../bpf/balancer.bpf.c

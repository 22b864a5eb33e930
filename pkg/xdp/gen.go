package xdp

// The object is built for every little-endian machine and committed, so that
// building the daemon needs no compiler for C. The major version of clang is
// part of the result; CI regenerates with the same one.
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -no-global-types -type flow_key -type flow -type vip -type service_key -type service -type schedule -type slot -type backend -type backend_key -type load -type traffic -type reap_request -type clear_request -type handshake -type verdict -type flow_flag -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Werror -I/usr/include/x86_64-linux-gnu" balancer ../../bpf/balancer.bpf.c

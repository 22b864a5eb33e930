package flowsync

import (
	"syscall"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// cpu returns the processor time used by the process so far.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkFullCopy connects two nodes, of which one has 100,000 flows, and
// waits until the other has them. Both are in this process, so cpu-ms is of the
// two, their tables included.
func BenchmarkFullCopy(b *testing.B) {
	const flows = 100_000
	src := newMemTable(testVIP(0))
	fill(src, 0, flows)
	var used time.Duration
	var bytes uint64
	for b.Loop() {
		b.StopTimer()
		dst := newMemTable()
		ca, cb := testConfigs(b, src, dst)
		done := make(chan struct{})
		cb.OnSynced = func(synced bool) {
			if synced {
				close(done)
			}
		}
		before := cpu(b)
		b.StartTimer()
		lb2, stopB := start(b, cb)
		_, stopA := start(b, ca)
		<-done
		b.StopTimer()
		used += cpu(b) - before
		bytes = lb2.Status().Received.Bytes
		if dst.len() != flows {
			b.Fatalf("%d flows", dst.len())
		}
		stopA()
		stopB()
		b.StartTimer()
	}
	b.ReportMetric(float64(used.Milliseconds())/float64(b.N), "cpu-ms/op")
	b.ReportMetric(float64(bytes)/flows, "wire-bytes/flow")
}

// BenchmarkLatency is the time from a change to its acknowledgement.
func BenchmarkLatency(b *testing.B) {
	src, dst := newMemTable(testVIP(0)), newMemTable()
	ca, cb := testConfigs(b, src, dst)
	ca.Heartbeat, cb.Heartbeat = 100*time.Millisecond, 100*time.Millisecond
	lb2, _ := start(b, cb)
	la, _ := start(b, ca)
	synced(b, la, lb2)
	changes := change(1)
	for b.Loop() {
		la.Publish(changes)
		if err := la.Drain(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPublish is what a change costs the goroutine that reads the
// datapath's ring buffer, with a peer that keeps up.
func BenchmarkPublish(b *testing.B) {
	src, dst := newMemTable(testVIP(0)), newMemTable()
	ca, cb := testConfigs(b, src, dst)
	lb2, _ := start(b, cb)
	la, _ := start(b, ca)
	synced(b, la, lb2)
	changes := make([]lb.FlowChange, 64)
	for i := range changes {
		changes[i] = change(i)[0]
	}
	n := 0
	for b.Loop() {
		la.Publish(changes)
		if n++; n%100 == 0 { // else it would measure a full queue
			b.StopTimer()
			if err := la.Drain(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(changes)), "ns/change")
	if s := la.Status(); s.Sent.Overflows > 0 {
		b.Errorf("%d overflows", s.Sent.Overflows)
	}
}

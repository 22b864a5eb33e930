//go:build race

package flowsync

// raceDetector is whether the tests run under it, several times as slow.
const raceDetector = true

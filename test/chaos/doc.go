// Package chaos kills, freezes and cuts off nodes while clients work (package workload), and checks what the clients saw.
//
// The faults are here and know no cluster; chaos_test.go (build tag chaos) lets them strike real processes. A run is described by
// its seed: the same faults strike at the same times.
package chaos

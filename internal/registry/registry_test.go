package registry_test

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/storaged/storaged/internal/registry"
)

func gauge(name string) prometheus.Collector {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: "for a test"})
}

// count returns how many metrics are registered.
func count(t *testing.T, r *prometheus.Registry) int {
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return len(families)
}

func TestRegister(t *testing.T) {
	r := prometheus.NewRegistry()
	unregister, err := registry.Register(r, gauge("a"), gauge("b"))
	if err != nil || count(t, r) != 2 {
		t.Fatalf("%v, %d registered", err, count(t, r))
	}
	if _, err := registry.Register(r, gauge("c"), gauge("a"), gauge("d")); err == nil || count(t, r) != 2 {
		t.Fatalf("one that is there already: %v, %d registered", err, count(t, r))
	}
	unregister()
	if count(t, r) != 0 {
		t.Fatalf("%d are left", count(t, r))
	}
	if unregister, err = registry.Register(nil, gauge("a")); err != nil {
		t.Fatal(err)
	}
	unregister()
}

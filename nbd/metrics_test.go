package nbd_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/storaged/storaged/nbd"
)

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewPedanticRegistry()
		f := newFixture(t, func(c *nbd.Config) { c.Metrics = registry })
		h := newHold(f.volume, "cache")
		c := f.client(nbd.ClientConfig{})
		p := make([]byte, 5000)
		if err := errors.Join(c.WriteAt(bg, p, 0), c.ReadAt(bg, p, 0), c.ReadAt(bg, p, 1)); err != nil {
			t.Fatal(err)
		}
		if err := c.ReadAt(bg, p, testSize); err == nil {
			t.Fatal("no error")
		}
		go func() { _ = c.Cache(bg, 0, 1) }()
		synctest.Wait()
		want := `
# HELP storage_nbd_bytes_total Bytes that successful NBD requests read, wrote, zeroed or discarded.
# TYPE storage_nbd_bytes_total counter
storage_nbd_bytes_total{export="v",operation="read"} 10000
storage_nbd_bytes_total{export="v",operation="write"} 5000
# HELP storage_nbd_errors_total NBD requests answered with an error. Worry at any: the client's file system sees it.
# TYPE storage_nbd_errors_total counter
storage_nbd_errors_total{export="v",operation="read"} 1
storage_nbd_errors_total{export="v",operation="write"} 0
# HELP storage_nbd_inflight_requests NBD requests read and not answered, by export. Worry when it is high and does not move.
# TYPE storage_nbd_inflight_requests gauge
storage_nbd_inflight_requests{export="v"} 1
# HELP storage_nbd_requests_total NBD requests answered, with or without error.
# TYPE storage_nbd_requests_total counter
storage_nbd_requests_total{export="v",operation="read"} 3
storage_nbd_requests_total{export="v",operation="write"} 1
`
		if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "storage_nbd_bytes_total",
			"storage_nbd_errors_total", "storage_nbd_inflight_requests", "storage_nbd_requests_total"); err != nil {
			t.Error(err)
		}
		close(h.released)
		_ = c.Close()
		f.conns.Wait()
		for name, want := range map[string]float64{"storage_nbd_inflight_bytes": 0, "storage_nbd_connections": 0,
			"storage_nbd_inflight_requests": 0, "storage_nbd_handshake_failures_total": 0} {
			if got := gathered(t, registry, name); got != want {
				t.Errorf("%s is %v at the end, want %v", name, got, want)
			}
		}
		if n, err := testutil.GatherAndCount(registry, "storage_nbd_request_duration_seconds"); n != 3 || err != nil {
			t.Errorf("%d latency histograms, %v; want 3", n, err)
		}
	})
}

// gathered is the sum of a metric's series.
func gathered(t *testing.T, registry *prometheus.Registry, name string) (sum float64) {
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.GetMetric() {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// TestMetricsOfFormerExports: volumes that come and go do not add series for ever.
func TestMetricsOfFormerExports(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	f := newFixture(t, func(c *nbd.Config) { c.Metrics = registry })
	stays := f.client(nbd.ClientConfig{})
	if err := stays.Flush(bg); err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		name := fmt.Sprintf("v%d", i)
		f.backend.Add(name, 4096)
		c := f.client(nbd.ClientConfig{Export: name})
		if err := errors.Join(c.Flush(bg), c.Close()); err != nil {
			t.Fatal(err)
		}
	}
	_ = stays.Flush(bg)
	_ = stays.Close()
	f.conns.Wait()
	n, err := testutil.GatherAndCount(registry, "storage_nbd_requests_total")
	if err != nil || n != 256 {
		t.Errorf("%d series after 301 exports, %v; want 256", n, err)
	}
	families, _ := registry.Gather()
	if !strings.Contains(fmt.Sprint(families), `value:"v"`) {
		t.Error("the export that was used last is forgotten")
	}
}

// TestMetricsTwice: two servers cannot count for the same registry, and say so.
func TestMetricsTwice(t *testing.T) {
	registry := prometheus.NewRegistry()
	f := newFixture(t, func(c *nbd.Config) { c.Metrics = registry })
	if _, err := nbd.NewServer(nbd.Config{Backend: f.backend, Metrics: registry}); err == nil {
		t.Error("no error")
	}
}

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
	"github.com/storaged/storaged/nbd/nbdclient"
)

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewPedanticRegistry()
		f := newFixture(t, func(c *nbd.Config) { c.Metrics = registry })
		h := newHold(f.volume, "cache")
		c := f.client(nbdclient.Config{})
		p := make([]byte, 5000)
		if err := errors.Join(c.WriteAt(bg, p, 0), c.ReadAt(bg, p, 0), c.ReadAt(bg, p, 1)); err != nil {
			t.Fatal(err)
		}
		if err := c.ReadAt(bg, p, testSize); err == nil {
			t.Fatal("no error")
		}
		go func() { _ = c.Cache(bg, 0, 1) }()
		synctest.Wait()
		want := "# HELP storage_nbd_inflight_requests NBD requests read and not answered. Worry when it is high and does not move.\n" +
			"# TYPE storage_nbd_inflight_requests gauge\nstorage_nbd_inflight_requests 1\n" +
			counts("storage_nbd_bytes_total", "Bytes that successful NBD requests read, wrote, zeroed or discarded.", map[string]int{"read": 10000, "write": 5000}) +
			counts("storage_nbd_errors_total", "NBD requests answered with an error. Worry at any: the client's file system sees it.", map[string]int{"read": 1}) +
			counts("storage_nbd_requests_total", "NBD requests answered, with or without error.", map[string]int{"read": 3, "write": 1})
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
		if n, err := testutil.GatherAndCount(registry, "storage_nbd_request_duration_seconds"); n != 9 || err != nil {
			t.Errorf("%d latency histograms, %v; want one for each command", n, err)
		}
	})
}

// counts is how a counter by operation is shown.
func counts(name, help string, of map[string]int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s counter\n", name, help, name)
	for _, operation := range []string{"block_status", "cache", "flush", "read", "resize", "trim", "unknown", "write", "write_zeroes"} {
		fmt.Fprintf(&b, "%s{operation=%q} %d\n", name, operation, of[operation])
	}
	return b.String()
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

// TestSeriesDoNotDependOnExports: however many volumes are served, the server has the same series.
func TestSeriesDoNotDependOnExports(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	f := newFixture(t, func(c *nbd.Config) { c.Metrics = registry })
	count := func() int {
		n, err := testutil.GatherAndCount(registry)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for i := range 50 {
		before := count()
		name := fmt.Sprintf("v%d", i)
		f.backend.Add(name, 4096)
		c := f.client(nbdclient.Config{Export: name})
		if err := errors.Join(c.Flush(bg), c.Close()); err != nil {
			t.Fatal(err)
		}
		f.conns.Wait() // the server counts how the connection has ended
		if after := count(); i > 0 && after != before {
			t.Fatalf("%d series before and %d after export %s", before, after, name)
		}
	}
}

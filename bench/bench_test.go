package main

import (
	"math"
	"strings"
	"testing"
	"time"
)

const fioOutput = `note: something
{"jobs": [{"error": 0,
  "read": {"io_bytes": 0, "bw_bytes": 0, "iops": 0, "total_ios": 0, "lat_ns": {"max": 0}},
  "write": {"io_bytes": 4096000, "bw_bytes": 2048000, "iops": 500.0, "total_ios": 1000,
    "lat_ns": {"max": 7000000, "mean": 123000, "percentile": {"50.000000": 100000, "99.000000": 200000, "99.900000": 300000}}}}]}`

func TestParseFio(t *testing.T) {
	m, err := parseFio([]byte(fioOutput), true)
	if err != nil {
		t.Fatal(err)
	}
	want := measure{IOPS: 500, MBPerS: 2.048, P50us: 100, P99us: 200, P999us: 300, requests: 1000, writtenBytes: 4096000,
		longest: 7 * time.Millisecond, meanUs: 123}
	if m != want {
		t.Errorf("got %+v, want %+v", m, want)
	}
	if _, err := parseFio([]byte(fioOutput), false); err == nil {
		t.Error("a job that answered no request was taken")
	}
	if _, err := parseFio([]byte(strings.Replace(fioOutput, `"error": 0`, `"error": 5`, 1)), true); err == nil {
		t.Error("a job with an error was taken")
	}
}

func TestMedian(t *testing.T) {
	odd := median([]measure{{IOPS: 3, P50us: 10}, {IOPS: 1, P50us: 30}, {IOPS: 2, P50us: 20}})
	even := median([]measure{{IOPS: 1}, {IOPS: 4}})
	if odd.IOPS != 2 || odd.P50us != 20 || even.IOPS != 2.5 {
		t.Errorf("medians %+v and %+v", odd, even)
	}
}

func TestRatio(t *testing.T) {
	latency := ratio(job{depth: 1}, measure{P50us: 300, IOPS: 1}, measure{P50us: 100, IOPS: 1})
	rate := ratio(job{depth: 32}, measure{P50us: 1, IOPS: 50}, measure{P50us: 1, IOPS: 100})
	if math.Abs(latency-3) > 1e-9 || math.Abs(rate-0.5) > 1e-9 {
		t.Errorf("ratios %v and %v, want 3 and 0.5", latency, rate)
	}
}

// TestVerdicts: the floor's rows are not judged, and every target of the table is spoken of.
func TestVerdicts(t *testing.T) {
	var r results
	for _, j := range jobs {
		r.rows = append(r.rows, row{System: "nbdkit", Job: j.name},
			row{System: "storaged", Job: j.name, Ratio: 1, measure: measure{CPUPer100k: 15, DiskPerByte: 3.1, ResidentMiB: 100}})
	}
	r.idlePercent, r.stall = 3, 4*time.Second
	missed := map[string]bool{}
	vs := r.verdicts()
	for _, v := range vs {
		missed[v.what] = !v.met()
	}
	if len(vs) != 12 {
		t.Errorf("%d verdicts, want 12: %+v", len(vs), vs)
	}
	if !missed["randwrite-qd32 CPU of all servers per 100,000"] || !missed["longest request while a leader is frozen"] ||
		missed["seqwrite-qd8 bytes to disk per byte"] || missed["CPU of the idle cluster"] {
		t.Errorf("missed: %v", missed)
	}
}

// TestSpaceFlags: what cannot be measured is refused, and a volume of the largest share fits into the store.
func TestSpaceFlags(t *testing.T) {
	cfg, err := parseSpaceFlags(nil)
	if err != nil {
		t.Fatal(err)
	}
	if size := cfg.volumeBytes(90); size <= 0 || size > cfg.usable()*9/10 || size < cfg.usable()*8/10 {
		t.Errorf("a volume of 90 %% has %d bytes of %d", size, cfg.usable())
	}
	for _, args := range [][]string{{"-live", "91"}, {"-live", "50,x"}, {"-nodes", "0"}, {"-nodes", "4"}, {"-turns", "1"}, {"-capacity-mib", "560"}, {"-time", "1500ms"}} {
		if _, err := parseSpaceFlags(args); err == nil {
			t.Errorf("%v are taken", args)
		}
	}
}

// TestPlotSpace: the plot is XML, with a point for each row.
func TestPlotSpace(t *testing.T) {
	svg := plotSpace([]spaceRow{{Nodes: 1, LivePercent: 50, LogPerByte: 1.5}, {Nodes: 3, LivePercent: 90, LogPerByte: 6}})
	points := circles(elements(t, svg))
	if points != 2 {
		t.Errorf("%d points of 2 rows: %s", points, svg)
	}
}

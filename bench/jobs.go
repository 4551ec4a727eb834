package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// job is one fio job: the same for both sides.
type job struct {
	name       string
	rw         string // fio's name of the pattern
	blockBytes int
	depth      int
	fua        bool // the floor it is held against makes every write durable
	// targets, from docs/performance.md; 0 is none
	ratioTarget float64 // at most for latencies (depth 1), at least for rates
	cpuTarget   float64 // CPU seconds per 100,000 requests, at most
	diskTarget  float64 // bytes to disk per byte written, at most
}

const (
	kib = 1 << 10
	mib = 1 << 20
)

// jobs in the order in which a round runs them.
var jobs = []job{
	{name: "randwrite-qd1", rw: "randwrite", blockBytes: 4 * kib, depth: 1, fua: true, ratioTarget: 2.2},
	{name: "randwrite-qd32", rw: "randwrite", blockBytes: 4 * kib, depth: 32, fua: true, ratioTarget: 0.45, cpuTarget: 14, diskTarget: 4.5},
	{name: "randwrite-qd128", rw: "randwrite", blockBytes: 4 * kib, depth: 128, fua: true},
	{name: "randread-qd1", rw: "randread", blockBytes: 4 * kib, depth: 1, ratioTarget: 3},
	{name: "randread-qd32", rw: "randread", blockBytes: 4 * kib, depth: 32, ratioTarget: 0.55},
	{name: "randread-qd128", rw: "randread", blockBytes: 4 * kib, depth: 128},
	{name: "seqwrite-qd8", rw: "write", blockBytes: mib, depth: 8, ratioTarget: 0.28, diskTarget: 3.3},
	{name: "seqread-qd8", rw: "read", blockBytes: mib, depth: 8, ratioTarget: 0.4},
}

// fillJob writes the volume once; stallJob runs while a node is frozen.
var (
	fillJob  = job{name: "fill", rw: "write", blockBytes: mib, depth: 8}
	stallJob = job{name: "stall", rw: "randwrite", blockBytes: 4 * kib, depth: 1}
)

// The targets that belong to no job's row.
const (
	idleTargetPercent = 4.0
	memoryTargetMiB   = 512.0
	stallTarget       = 3 * time.Second
)

func (j job) writes() bool { return j.rw == "write" || j.rw == "randwrite" }

// args returns fio's arguments. perJob 0 runs over the volume once.
func (j job) args(uri string, sizeBytes int64, perJob time.Duration, round int) []string {
	args := []string{"--name=" + j.name, "--ioengine=nbd", "--uri=" + uri, "--rw=" + j.rw,
		"--bs=" + strconv.Itoa(j.blockBytes), "--iodepth=" + strconv.Itoa(j.depth), "--size=" + strconv.FormatInt(sizeBytes, 10),
		"--norandommap", "--randrepeat=0", "--randseed=" + strconv.Itoa(1000+round), "--refill_buffers",
		"--lat_percentiles=1", "--clat_percentiles=0", "--percentile_list=50:99:99.9"}
	if perJob > 0 {
		args = append(args, "--time_based", fmt.Sprintf("--runtime=%d", int(perJob.Seconds())))
	}
	return args
}

// measure is what one run of a job gave, or the median of several.
type measure struct {
	IOPS         float64 `json:"iops"`
	MBPerS       float64 `json:"mb_per_s"` // 10^6 bytes
	P50us        float64 `json:"p50_us"`
	P99us        float64 `json:"p99_us"`
	P999us       float64 `json:"p999_us"`
	CPUPer100k   float64 `json:"cpu_s_per_100k"`      // of all servers of the system, per 100,000 requests
	DiskPerByte  float64 `json:"disk_bytes_per_byte"` // written to disk by all servers, per byte written; 0 for reads
	ResidentMiB  float64 `json:"rss_mib"`             // of the largest server
	requests     int64
	writtenBytes int64
	longest      time.Duration
	meanUs       float64
}

// runFio runs one job against an export.
func runFio(ctx context.Context, j job, uri string, sizeBytes int64, perJob time.Duration, round int) (measure, error) {
	out, err := fio(ctx, j.name+" on "+uri, j.args(uri, sizeBytes, perJob, round))
	if err != nil {
		return measure{}, err
	}
	m, err := parseFio(out, j.writes())
	if err != nil {
		return m, fmt.Errorf("fio %s on %s: %w", j.name, uri, err)
	}
	return m, nil
}

func tail(b []byte) []byte { return b[max(0, len(b)-500):] }

// parseFio reads fio's JSON: of the reads, or of the writes.
func parseFio(out []byte, writes bool) (m measure, err error) {
	if !writes {
		m, _, err = parseFioOf(out, "read")
		return m, err
	}
	m, m.writtenBytes, err = parseFioOf(out, "write")
	return m, err
}

// parseFioOf reads one direction of fio's only job, or of its only group of jobs: read, write or mixed, which is both together.
func parseFioOf(out []byte, direction string) (m measure, ioBytes int64, err error) {
	var doc struct {
		Jobs []map[string]json.RawMessage `json:"jobs"`
	}
	// fio prints notes before its JSON.
	if i := bytes.IndexByte(out, '{'); i > 0 {
		out = out[i:]
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		return m, 0, err
	}
	if len(doc.Jobs) != 1 || string(doc.Jobs[0]["error"]) != "0" {
		return m, 0, errors.New("the job did not run well")
	}
	var d struct {
		IOBytes  int64   `json:"io_bytes"`
		BWBytes  float64 `json:"bw_bytes"`
		IOPS     float64 `json:"iops"`
		TotalIOs int64   `json:"total_ios"`
		Lat      struct {
			Max        float64            `json:"max"`
			Mean       float64            `json:"mean"`
			Percentile map[string]float64 `json:"percentile"`
		} `json:"lat_ns"`
	}
	if err := json.Unmarshal(doc.Jobs[0][direction], &d); err != nil {
		return m, 0, fmt.Errorf("%s: %w", direction, err)
	}
	if d.TotalIOs == 0 {
		return m, 0, errors.New("no request was answered")
	}
	m.IOPS, m.MBPerS, m.requests = d.IOPS, d.BWBytes/1e6, d.TotalIOs
	m.longest, m.meanUs = time.Duration(d.Lat.Max), d.Lat.Mean/1e3
	m.P50us, m.P99us, m.P999us = d.Lat.Percentile["50.000000"]/1e3, d.Lat.Percentile["99.000000"]/1e3, d.Lat.Percentile["99.900000"]/1e3
	return m, d.IOBytes, nil
}

// median returns the median of each figure by itself.
func median(ms []measure) (m measure) {
	of := func(get func(*measure) *float64) {
		var xs []float64
		for i := range ms {
			xs = append(xs, *get(&ms[i]))
		}
		slices.Sort(xs)
		if n := len(xs); n > 0 {
			*get(&m) = (xs[(n-1)/2] + xs[n/2]) / 2
		}
	}
	of(func(m *measure) *float64 { return &m.IOPS })
	of(func(m *measure) *float64 { return &m.MBPerS })
	of(func(m *measure) *float64 { return &m.P50us })
	of(func(m *measure) *float64 { return &m.P99us })
	of(func(m *measure) *float64 { return &m.P999us })
	of(func(m *measure) *float64 { return &m.CPUPer100k })
	of(func(m *measure) *float64 { return &m.DiskPerByte })
	of(func(m *measure) *float64 { return &m.ResidentMiB })
	return m
}

// ratio holds a measure against the floor's: latencies at depth 1, rates otherwise.
func ratio(j job, mine, base measure) float64 {
	switch {
	case j.depth == 1 && base.P50us > 0:
		return mine.P50us / base.P50us
	case j.depth > 1 && base.IOPS > 0:
		return mine.IOPS / base.IOPS
	}
	return 0
}

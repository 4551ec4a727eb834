package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"
)

// row is one line of bench/out.json.
type row struct {
	System string `json:"system"`
	Job    string `json:"job"`
	measure
	Ratio float64 `json:"ratio,omitempty"` // of the system that is measured; see docs/performance.md
}

// results is all that a run found.
type results struct {
	config      config
	rows        []row
	idlePercent float64
	stall       time.Duration // 0: not measured
}

// verdict is one target held against what was found.
type verdict struct {
	what        string
	got, target float64
	unit        string
	atLeast     bool
}

func (v verdict) met() bool {
	if v.atLeast {
		return v.got >= v.target
	}
	return v.got <= v.target
}

// verdicts returns every target that this run can speak of.
func (r results) verdicts() (vs []verdict) {
	atMost := func(what string, got, target float64, unit string) {
		vs = append(vs, verdict{what: what, got: got, target: target, unit: unit})
	}
	largest := 0.0
	for _, row := range r.rows {
		j, ok := jobNamed(row.Job)
		if !ok || row.Ratio == 0 { // the floor's rows have no ratio
			continue
		}
		if j.ratioTarget > 0 {
			v := verdict{what: row.Job + " latency over the floor's", got: row.Ratio, target: j.ratioTarget, unit: "x"}
			if j.depth > 1 {
				v.what, v.atLeast = row.Job+" rate over the floor's", true
			}
			vs = append(vs, v)
		}
		if j.cpuTarget > 0 {
			atMost(row.Job+" CPU of all servers per 100,000", row.CPUPer100k, j.cpuTarget, "s")
		}
		if j.diskTarget > 0 {
			atMost(row.Job+" bytes to disk per byte", row.DiskPerByte, j.diskTarget, "")
		}
		if j.writes() && j.blockBytes == 4*kib {
			largest = max(largest, row.ResidentMiB)
		}
	}
	if largest > 0 {
		atMost("resident size of a node under 4 KiB writes", largest, memoryTargetMiB, "MiB")
	}
	atMost("CPU of the idle cluster", r.idlePercent, idleTargetPercent, "% of a core")
	if r.stall > 0 {
		atMost("longest request while a leader is frozen", r.stall.Seconds(), stallTarget.Seconds(), "s")
	}
	return vs
}

func jobNamed(name string) (job, bool) {
	for _, j := range jobs {
		if j.name == name {
			return j, true
		}
	}
	return job{}, false
}

func (r results) print(w io.Writer) {
	fmt.Fprintf(w, "\nMedians of %d rounds of %v on %d GiB:\n\n", r.config.rounds, r.config.perJob, r.config.sizeBytes>>30)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "job\tsystem\trequests/s\tMB/s\tp50 us\tp99 us\tp99.9 us\tCPU s/100k\tdisk B/B\tMiB\tratio\t")
	for _, row := range r.rows {
		disk, of := "", ""
		if row.DiskPerByte > 0 {
			disk = fmt.Sprintf("%.2f", row.DiskPerByte)
		}
		if row.Ratio > 0 {
			of = fmt.Sprintf("%.2f", row.Ratio)
		}
		fmt.Fprintf(t, "%s\t%s\t%.0f\t%.1f\t%.0f\t%.0f\t%.0f\t%.2f\t%s\t%.0f\t%s\t\n", row.Job, row.System, row.IOPS, row.MBPerS,
			row.P50us, row.P99us, row.P999us, row.CPUPer100k, disk, row.ResidentMiB, of)
	}
	_ = t.Flush() // to a terminal
	fmt.Fprintln(w)
	for _, v := range r.verdicts() {
		word, bound := "MISS", "at most"
		if v.met() {
			word = "PASS"
		}
		if v.atLeast {
			bound = "at least"
		}
		fmt.Fprintf(w, "%s  %-46s %8.2f %s (%s %g)\n", word, v.what, v.got, v.unit, bound, v.target)
	}
}

// write writes the rows.
func (r results) write(path string) error {
	b, err := json.MarshalIndent(r.rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

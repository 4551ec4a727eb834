package testcluster

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// clockTicks is how many of /proc's clock ticks make a second: USER_HZ is 100 on every Linux that Go runs on.
const clockTicks = 100

// Usage is what a process has used since it was started, and what it holds now. What it wrote to disk is not in
// it: /proc counts pages made dirty, in units of whole folios, which says little about the device.
type Usage struct {
	CPU               time.Duration // user and system
	ResidentBytes     int64         // now
	PeakResidentBytes int64
}

// Add returns the sum of two processes' usage.
func (u Usage) Add(v Usage) Usage {
	return Usage{CPU: u.CPU + v.CPU, ResidentBytes: u.ResidentBytes + v.ResidentBytes,
		PeakResidentBytes: u.PeakResidentBytes + v.PeakResidentBytes}
}

// Since returns what was used since an earlier reading; what is held stays as it is now.
func (u Usage) Since(earlier Usage) Usage {
	u.CPU -= earlier.CPU
	return u
}

// ReadUsage reads /proc/PID.
func ReadUsage(pid int) (u Usage, err error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/"
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return u, fmt.Errorf("testcluster: %w", err)
	}
	// The second field, the name, is in parentheses and may hold spaces; after it come state, ppid, ...
	_, rest, ok := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
	fields := strings.Fields(string(rest))
	if !ok || len(fields) < 13 {
		return u, fmt.Errorf("testcluster: %sstat is not understood", dir)
	}
	var ticks int64
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return u, fmt.Errorf("testcluster: %sstat: %w", dir, err)
		}
		ticks += n
	}
	u.CPU = time.Duration(ticks) * time.Second / clockTicks
	status, err := readKeys(dir+"status", "VmRSS", "VmHWM")
	if err != nil {
		return u, err
	}
	u.ResidentBytes, u.PeakResidentBytes = status["VmRSS"]<<10, status["VmHWM"]<<10
	return u, nil
}

// readKeys reads numbers from a file of "key: number [unit]" lines. A key that is not there is 0.
func readKeys(path string, keys ...string) (map[string]int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("testcluster: %w", err)
	}
	values := map[string]int64{}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		for _, k := range keys {
			if k == key && len(fields) > 0 {
				if values[k], err = strconv.ParseInt(fields[0], 10, 64); err != nil {
					return nil, fmt.Errorf("testcluster: %s: %s: %w", path, k, err)
				}
			}
		}
	}
	return values, nil
}

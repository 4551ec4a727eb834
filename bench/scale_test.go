package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestScaleFlags: what cannot be measured is refused, with every problem at once, and each series can be asked for by itself.
func TestScaleFlags(t *testing.T) {
	if _, err := parseScaleFlags(nil); err != nil {
		t.Fatal(err)
	}
	for _, s := range scaleSeries {
		if cfg, err := parseScaleFlags([]string{"-only", s.name}); err != nil || !slices.Equal(cfg.only, []string{s.name}) {
			t.Errorf("-only %s: %v, %v", s.name, cfg.only, err)
		}
	}
	for _, args := range [][]string{{"-only", "depth,x"}, {"-idle-volumes", "10,x"}, {"-idle-volumes", "100,10"}, {"-size-mib", "65"}, {"-size-mib", "0"},
		{"-rounds", "0"}, {"-time", "1500ms"}, {"-idle", "0"}, {"-capacity-mib", "560"}, {"-live", "95"}} {
		if _, err := parseScaleFlags(args); err == nil {
			t.Errorf("%v are taken", args)
		}
	}
	_, err := parseScaleFlags([]string{"-only", "nothing", "-rounds", "0"})
	if err == nil || !strings.Contains(err.Error(), "-only nothing") || !strings.Contains(err.Error(), "-rounds") {
		t.Errorf("two problems, and of them it says %v", err)
	}
}

// TestLoadArgs: what stands before the first job holds for every target, and each has a connection of its own.
func TestLoadArgs(t *testing.T) {
	args := load{rw: "randrw", readPercent: 70, blockBytes: 4096, depth: 8}.args([]target{{uri: "nbd://a/x", sizeBytes: mib}, {uri: "nbd://b/y", sizeBytes: 2 * mib, offset: mib}}, 0, 3)
	first := slices.Index(args, "--name=t0")
	want := []string{"--name=t0", "--uri=nbd://a/x", "--offset=0", "--size=1048576", "--name=t1", "--uri=nbd://b/y", "--offset=1048576", "--size=2097152"}
	if first < 0 || !slices.Equal(args[first:], want) {
		t.Errorf("targets in %v, want %v at the end", args, want)
	}
	for _, a := range []string{"--rwmixread=70", "--iodepth=8", "--bs=4096", "--randseed=1003", "--group_reporting", "--unified_rw_reporting=mixed"} {
		if i := slices.Index(args, a); i < 0 || i > first {
			t.Errorf("%s is not before the first job of %v", a, args)
		}
	}
}

// TestParseMixed: reads and writes together are one figure.
func TestParseMixed(t *testing.T) {
	m, n, err := parseFioOf([]byte(strings.Replace(fioOutput, `"write"`, `"mixed"`, 1)), "mixed")
	if err != nil || m.IOPS != 500 || n != 4096000 {
		t.Errorf("%+v of %d bytes, %v", m, n, err)
	}
	if _, _, err := parseFioOf([]byte(fioOutput), "mixed"); err == nil {
		t.Error("a report without that direction was taken")
	}
}

// element is one of a plot's.
type element struct {
	name  string
	attrs map[string]string
}

// elements returns those of an SVG, which must be XML.
func elements(t *testing.T, svg []byte) (es []element) {
	t.Helper()
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return es
		}
		if err != nil {
			t.Fatalf("%v in %s", err, svg)
		}
		if start, ok := token.(xml.StartElement); ok {
			e := element{name: start.Name.Local, attrs: map[string]string{}}
			for _, a := range start.Attr {
				e.attrs[a.Name.Local] = a.Value
			}
			es = append(es, e)
		}
	}
}

func circles(es []element) (n int) {
	for _, e := range es {
		if e.name == "circle" {
			n++
		}
	}
	return n
}

// TestScalePlot: every series has a plot with a point for each row and figure, in a file of its own.
func TestScalePlot(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "plots")
	for i := range scaleSeries {
		s := &scaleSeries[i]
		rows := []scaleRow{
			{Series: s.name, System: "nbdkit", X: 1, measure: measure{IOPS: 900, P50us: 10}},
			{Series: s.name, System: "storaged", X: 1, measure: measure{IOPS: 1e6, P50us: 11}},
			{Series: s.name, System: "storaged", X: 256},
		}
		if err := s.plot(dir, rows); err != nil {
			t.Fatal(err)
		}
		svg, err := os.ReadFile(filepath.Join(dir, "scale-"+s.name+".svg"))
		if err != nil {
			t.Fatal(err)
		}
		if n := circles(elements(t, svg)); n != len(rows)*len(s.figures) {
			t.Errorf("%s: %d points of %d rows and %d figures", s.name, n, len(rows), len(s.figures))
		}
	}
}

// TestChart: nothing lies outside of a plot, whatever the values, names are escaped, and equal ratios are equally far on a log axis.
func TestChart(t *testing.T) {
	c := chart{title: "a < b & c", xLabel: `"x"`, logX: true, panels: []panel{
		{title: "zero", lines: []line{{name: "z<", marks: true, points: map[float64]float64{1: 0, 16: 0, 256: 0}}}},
		{title: "much", lines: []line{{name: "m", marks: true, points: map[float64]float64{1: 0.001, 16: 7, 256: 9.99e6}}}},
		{title: "nothing"},
	}}
	svg := c.svg()
	if strings.Contains(string(svg), "NaN") || strings.Contains(string(svg), "Inf") {
		t.Errorf("not numbers in %s", svg)
	}
	if n := circles(elements(t, svg)); n != 6 {
		t.Errorf("%d points, want 6", n)
	}
	_, x := c.xAxis()
	if a, b := x(16)-x(1), x(256)-x(16); math.Abs(a-b) > 1e-6 || x(1) < chartLeft || x(256) > chartWidth-chartRight {
		t.Errorf("1, 16 and 256 at %v, %v and %v", x(1), x(16), x(256))
	}
	empty, single := chart{}, chart{panels: []panel{{lines: []line{{points: map[float64]float64{5: 1}}}}}}
	for _, c := range []chart{empty, single} {
		if svg := string(c.svg()); strings.Contains(svg, "NaN") {
			t.Errorf("not a number in %s", svg)
		}
	}
}

// TestNiceStep: four to ten steps reach the largest value.
func TestNiceStep(t *testing.T) {
	for most := 1e-3; most < 1e7; most *= 1.37 {
		if n := math.Ceil(most / niceStep(most)); n < 3 || n > 10 {
			t.Errorf("%v steps of %v reach %v", n, niceStep(most), most)
		}
	}
}

// TestDirBytes: files at any depth count, and a directory that is gone is empty.
func TestDirBytes(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x", "a/y"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 100), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := dirBytes(dir); n != 200 || err != nil {
		t.Errorf("%v bytes, %v", n, err)
	}
	if n, err := dirBytes(filepath.Join(dir, "gone")); n != 0 || err != nil {
		t.Errorf("%v bytes, %v", n, err)
	}
}

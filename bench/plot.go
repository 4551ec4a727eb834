package main

import (
	"bytes"
	"fmt"
	"html"
	"maps"
	"math"
	"slices"
	"strconv"
)

// chart is one plot: panels below each other, over the same x.
type chart struct {
	title, xLabel string
	logX          bool // every x is above 0 then
	panels        []panel
}

// panel has a y axis of its own, from 0 to a round number above all values.
type panel struct {
	title string
	lines []line
}

// line is one series of a panel. Values are not negative.
type line struct {
	name, color, dash string
	marks             bool // draw each point, with its value as the tool tip
	points            map[float64]float64
}

const (
	chartWidth, panelHeight        = 720, 260
	chartLeft, chartRight          = 80, 20
	chartTop, panelTop, panelLower = 40, 34, 44
)

// colors of measured lines, in order.
var colors = []string{"#1f77b4", "#d62728", "#2ca02c", "#9467bd"}

// figureOf is a panel's title and what it shows of a row.
type figureOf[R any] struct {
	title string
	of    func(*R) float64
}

// panelsOf makes a panel for each figure, with a line for each name of rows.
func panelsOf[R any](figures []figureOf[R], rows []R, x func(*R) float64, name func(*R) string) (panels []panel) {
	for _, f := range figures {
		p := panel{title: f.title}
		for i := range rows {
			r := &rows[i]
			at := slices.IndexFunc(p.lines, func(l line) bool { return l.name == name(r) })
			if at < 0 {
				at = len(p.lines)
				p.lines = append(p.lines, line{name: name(r), color: colors[at%len(colors)], marks: true, points: map[float64]float64{}})
			}
			p.lines[at].points[x(r)] = f.of(r)
		}
		panels = append(panels, p)
	}
	return panels
}

// svg draws the chart.
func (c *chart) svg() []byte {
	height := chartTop + len(c.panels)*panelHeight + 30
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", chartWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", chartWidth, height)
	fmt.Fprintf(&b, `<text x="%d" y="24" font-size="15">%s</text>`+"\n", chartLeft, html.EscapeString(c.title))
	xs, x := c.xAxis()
	for i, p := range c.panels {
		p.draw(&b, chartTop+i*panelHeight, xs, x)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", chartWidth/2, height-12, html.EscapeString(c.xLabel))
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// xAxis returns every x of the chart in ascending order, and where one lies.
func (c *chart) xAxis() (xs []float64, at func(float64) float64) {
	all := map[float64]bool{}
	for _, p := range c.panels {
		for _, l := range p.lines {
			for x := range l.points {
				all[x] = true
			}
		}
	}
	xs = slices.Sorted(maps.Keys(all))
	scaled := func(x float64) float64 { return x }
	if c.logX {
		scaled = math.Log
	}
	from, span := 0.0, 0.0
	if len(xs) > 0 {
		from = scaled(xs[0])
		span = scaled(xs[len(xs)-1]) - from
	}
	return xs, func(x float64) float64 {
		share := 0.5 // a single x
		if span > 0 {
			share = (scaled(x) - from) / span
		}
		const margin = 30
		return chartLeft + margin + share*(chartWidth-chartLeft-chartRight-2*margin)
	}
}

// draw draws the panel below y = top.
func (p *panel) draw(b *bytes.Buffer, top int, xs []float64, x func(float64) float64) {
	most := 0.0
	for _, l := range p.lines {
		for _, v := range l.points {
			most = max(most, v)
		}
	}
	step := niceStep(most)
	toY := step * max(1, math.Ceil(most/step))
	upper, lower := float64(top+panelTop), float64(top+panelHeight-panelLower)
	y := func(v float64) float64 { return lower - v/toY*(lower-upper) }
	fmt.Fprintf(b, `<text x="%d" y="%d" font-weight="bold">%s</text>`+"\n", chartLeft, top+panelTop-14, html.EscapeString(p.title))
	for i := 0; float64(i)*step <= toY*1.001; i++ {
		v := float64(i) * step
		fmt.Fprintf(b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			chartLeft, chartWidth-chartRight, y(v), y(v), chartLeft-8, y(v)+4, number(v))
	}
	for _, v := range xs {
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n", x(v), lower+18, number(v))
	}
	legend := chartWidth - chartRight - 130*len(p.lines)
	for i, l := range p.lines {
		var path bytes.Buffer
		for _, at := range slices.Sorted(maps.Keys(l.points)) {
			fmt.Fprintf(&path, "%.1f,%.1f ", x(at), y(l.points[at]))
			if l.marks {
				fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="4" fill="%s"><title>%s, %s: %s</title></circle>`+"\n",
					x(at), y(l.points[at]), l.color, html.EscapeString(l.name), number(at), number(l.points[at]))
			}
		}
		fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2" stroke-dasharray="%s"/>`+"\n", bytes.TrimSpace(path.Bytes()), l.color, l.dash)
		fmt.Fprintf(b, `<line x1="%d" x2="%d" y1="%d" y2="%d" stroke="%s" stroke-width="2" stroke-dasharray="%s"/><text x="%d" y="%d">%s</text>`+"\n",
			legend+130*i, legend+130*i+30, top+panelTop-18, top+panelTop-18, l.color, l.dash, legend+130*i+36, top+panelTop-14, html.EscapeString(l.name))
	}
}

// niceStep returns 1, 2 or 5 times a power of ten, of which four to ten reach most.
func niceStep(most float64) float64 {
	if most <= 0 {
		return 1
	}
	step := math.Pow(10, math.Floor(math.Log10(most)))
	switch {
	case most/step < 2:
		return step / 5
	case most/step < 5:
		return step / 2
	}
	return step
}

// number is a value with four digits that count.
func number(v float64) string {
	if v >= 1000 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}

// plotSpace draws log bytes per payload byte over the live share: what was simulated, and what one node and three wrote.
func plotSpace(rows []spaceRow) []byte {
	lines := []line{
		{name: "simulated", color: "#888", dash: "5 4", points: map[float64]float64{}},
		{name: "one node", color: colors[0], marks: true, points: map[float64]float64{}},
		{name: "three nodes", color: colors[1], marks: true, points: map[float64]float64{}},
	}
	for percent, v := range simulated {
		lines[0].points[float64(percent)] = v
	}
	for _, r := range rows {
		i := 1
		if r.Nodes > 1 {
			i = 2
		}
		lines[i].points[float64(r.LivePercent)] = r.LogPerByte
	}
	c := chart{title: "Random 4 KiB overwrites of a full volume", xLabel: "percent of what the store may use that lives",
		panels: []panel{{title: "bytes of log per byte", lines: lines}}}
	return c.svg()
}

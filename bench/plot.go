package main

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
)

// plotSpace draws log bytes per payload byte over the live share: what was simulated, and what one node and three wrote.
func plotSpace(rows []spaceRow) []byte {
	const width, height, left, bottom, top = 720, 420, 60, 60, 40
	const fromX, toX, toY = 45.0, 95.0, 8.0
	x := func(percent float64) float64 { return left + (percent-fromX)/(toX-fromX)*(width-left-20) }
	y := func(v float64) float64 { return height - bottom - v/toY*(height-bottom-top) }
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%d" y="22" font-size="15">Random 4 KiB overwrites of a full volume: bytes written to the log per byte of the client</text>`+"\n", left)
	for v := 1.0; v <= toY; v++ {
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.0f" y2="%.0f" stroke="#ddd"/><text x="%d" y="%.0f" text-anchor="end">%.0f</text>`+"\n",
			left, width-20, y(v), y(v), left-8, y(v)+4, v)
	}
	for p := 50.0; p <= 90; p += 10 {
		fmt.Fprintf(&b, `<text x="%.0f" y="%d" text-anchor="middle">%.0f %%</text>`+"\n", x(p), height-bottom+20, p)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">lives, of what the store may use</text>`+"\n", width/2, height-bottom+42)

	series := []struct {
		name, color, dash string
		points            map[int]float64
	}{
		{"simulated", "#888", "5 4", simulated},
		{"one node", "#1f77b4", "", map[int]float64{}},
		{"three nodes", "#d62728", "", map[int]float64{}},
	}
	for _, r := range rows {
		i := 1
		if r.Nodes > 1 {
			i = 2
		}
		series[i].points[r.LivePercent] = r.LogPerByte
	}
	for i, s := range series {
		var line bytes.Buffer
		for _, p := range slices.Sorted(maps.Keys(s.points)) {
			fmt.Fprintf(&line, "%.1f,%.1f ", x(float64(p)), y(s.points[p]))
			if i > 0 {
				fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="4" fill="%s"><title>%s, %d %%: %.2f</title></circle>`+"\n",
					x(float64(p)), y(s.points[p]), s.color, s.name, p, s.points[p])
			}
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2" stroke-dasharray="%s"/>`+"\n", bytes.TrimSpace(line.Bytes()), s.color, s.dash)
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%d" y2="%d" stroke="%s" stroke-width="2" stroke-dasharray="%s"/><text x="%d" y="%d">%s</text>`+"\n",
			left+20, left+60, 60+20*i, 60+20*i, s.color, s.dash, left+70, 64+20*i, s.name)
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

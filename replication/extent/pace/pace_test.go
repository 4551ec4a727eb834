package pace

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// disk is one whose clients take so long for a write while so many bytes are copied in a second.
type disk struct {
	feels  func(rate float64) time.Duration
	asked  time.Time
	copied float64
}

func (d *disk) latency() time.Duration {
	now := time.Now()
	rate := d.copied / max(1e-9, now.Sub(d.asked).Seconds())
	d.asked, d.copied = now, 0
	return d.feels(rate)
}

// Copies go as fast as they can while there are no clients, or these do not feel it; else about as fast as they do not. However much they do,
// something is copied, and what takes long is rested from now and then, so that it is known what clients have without.
//
// Each case is a line of look, without which it failed.
func TestPace(t *testing.T) {
	const chunk, disks = 1 << 20, 400 << 20 // the disk itself
	for _, c := range []struct {
		name  string
		feels func(rate float64) time.Duration
		least float64 // bytes a second in the end
		most  float64
	}{
		{"no clients", func(float64) time.Duration { return 0 }, 0.99 * disks, disks},
		{"clients that do not feel it", func(float64) time.Duration { return time.Millisecond }, 0.9 * disks, disks},
		{"clients that feel a little", func(r float64) time.Duration {
			return 200*time.Microsecond + time.Duration(min(r, disks)/disks*float64(time.Millisecond))
		}, 0.9 * disks, disks},
		{"clients that feel more than 100 MiB/s", func(r float64) time.Duration {
			if r > 100<<20 {
				return 20 * time.Millisecond
			}
			return time.Millisecond
		}, 50 << 20, 110 << 20},
		{"clients that feel anything", func(r float64) time.Duration {
			if r > 0 {
				return 20 * time.Millisecond
			}
			return time.Millisecond
		}, 0.9 * Least, 1.1 * Least},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &disk{feels: c.feels, asked: time.Now()}
				time.Sleep(time.Second)
				p := New(d.latency)
				copyFor := func(span time.Duration) float64 {
					bytes := 0
					for end := time.Now().Add(span); time.Now().Before(end); bytes += chunk {
						if err := p.Wait(t.Context(), chunk); err != nil {
							t.Fatal(err)
						}
						d.copied += chunk
						time.Sleep(time.Second * chunk / disks)
					}
					return float64(bytes) / span.Seconds()
				}
				copyFor(2 * time.Minute)
				if rate := copyFor(5 * time.Minute); rate < c.least || rate > c.most {
					t.Errorf("%.0f MiB/s, want %.0f to %.0f", rate/(1<<20), c.least/(1<<20), c.most/(1<<20))
				}
			})
		})
	}
}

// What clients have without copies is learned while copies never end: here they began before there were clients.
//
// Line: the rest in look; without it the copies were never held back.
func TestPaceLearnsWhileItCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clients := false
		d := &disk{asked: time.Now(), feels: func(r float64) time.Duration {
			switch {
			case !clients:
				return 0
			case r > 50<<20:
				return 30 * time.Millisecond
			}
			return time.Millisecond
		}}
		p := New(d.latency)
		rate := func(span time.Duration) float64 {
			bytes := 0.0
			for end := time.Now().Add(span); time.Now().Before(end); bytes += 1 << 20 {
				if err := p.Wait(t.Context(), 1<<20); err != nil {
					t.Fatal(err)
				}
				d.copied += 1 << 20
				time.Sleep(2 * time.Millisecond)
			}
			return bytes / span.Seconds()
		}
		rate(time.Minute)
		clients = true
		rate(time.Minute)
		if r := rate(time.Minute); r > 60<<20 {
			t.Errorf("%.0f MiB/s, and clients feel 50", r/(1<<20))
		}
	})
}

func TestPaceEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(func() time.Duration { return 0 })
		p.limit, p.looked = Least, time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		begun := time.Now()
		var err error
		for err == nil {
			err = p.Wait(ctx, Least)
		}
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != 500*time.Millisecond {
			t.Error(err, time.Since(begun))
		}
	})
}

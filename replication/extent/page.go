package extent

import "github.com/storaged/storaged/replication/extent/table"

// pageMemory is about what a cached page costs in memory.
const pageMemory = 1 << 10

// page is one version of a page in memory. The group's lock guards it; once it is frozen it does not change any more.
type page struct {
	table.Page

	// dirtySince is 0 for a page that the last checkpoint holds, otherwise the group's freeze count when it was
	// changed. A page may be changed in place unless it is frozen: 0 < dirtySince < the group's count.
	dirtySince uint64
}

// clone returns a copy, of which no checkpoint knows.
func (p *page) clone() *page {
	c := *p
	c.dirtySince = 0
	return &c
}

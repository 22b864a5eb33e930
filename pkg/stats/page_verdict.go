package stats

import "github.com/pgsteer/pgsteer/pkg/lb"

// verdictTables is one table for each action.
func verdictTables(counts []lb.VerdictCount) []countTable {
	titles := map[string]string{"tx": "Forwarded or answered", "pass": "Passed to the kernel", "drop": "Dropped"}
	var tables []countTable
	index := map[string]int{}
	for _, v := range counts {
		i, ok := index[v.Action]
		if !ok {
			i = len(tables)
			index[v.Action] = i
			title := titles[v.Action]
			if title == "" {
				title = v.Action
			}
			tables = append(tables, countTable{Title: title, Unit: "Packets"})
		}
		tables[i].Rows = append(tables[i].Rows, countRow{v.Name, grouped(v.Count)})
	}
	return tables
}

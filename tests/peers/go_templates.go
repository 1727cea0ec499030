// Renders the cases on standard input with Go's text/template, as Ollama does, and compares.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"text/template"
)

type turn struct{ Role, Content string }

type given struct {
	System   string
	Messages []turn
}

type oneCase struct {
	Template string
	Values   given
	Expected string
}

func main() {
	var cases []oneCase
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	for _, one := range cases {
		values := map[string]any{"System": one.Values.System, "Messages": one.Values.Messages}
		var text bytes.Buffer
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(one.Template))
		if err := parsed.Execute(&text, values); err != nil {
			panic(err)
		}
		if text.String() != one.Expected {
			fmt.Printf("%q\nrenders %q\nexpected %q\n", one.Template, text.String(), one.Expected)
			os.Exit(1)
		}
	}
	fmt.Printf("Go renders %d conversations as our own templates do\n", len(cases))
	if len(cases) < 20 {
		os.Exit(1)
	}
}

"""google.colab のモックです。名前・例外の型・文面は、公開されている本物（googlecolab/colabtools）に合わせています。

ほんとうに Drive をつなぐ代わりに、ふつうのフォルダを使います。ふるまいは drive.behaviour などで選びます。
"""
